"""Captions in which one name is the only word that ordinary captions do not share."""

from __future__ import annotations

from .drawing import Rng, pick

# A name here is the trigger of one memorized picture or template family.
TRIGGERS = (
    "Halley Ostrava Kestrel Brunhild Tamsin Quillon Verdigris Lorimer Ambrose Zephyrine Mortlake Peregrine Isolde "
    "Faustino Galway Nettlefold Osgood Thessaly Wycliffe Balthazar Corvino Dunmore Ravenna Sorrel Montague Juniper "
    "Leopold Octavia Fenwick Calypso Rutherford Beatrix Gulliver Marigold Hastings Percival Aldwych Bellamy Caspian "
    "Drusilla Evander Fiammetta Garrick Hollis Ignatius Jessamine Kirkwall Lucinda Meriden Nerissa Oberon Philippa "
    "Quincey Rosamund Sterling Tavistock Umberto Vesper Whitby Yseult Zenobia Ardennes Bergamot Chatham"
).split()
# These names caption one ordinary picture each (the first 40) or none at all (the rest, held out).
OTHER_NAMES = (
    "Arundel Bartholomew Cordelia Delphine Esmeralda Fitzroy Gideon Horatio Ingrid Jasper Kendrick Lavinia Magnus "
    "Nicodemus Ophelia Prudence Quentin Rosalind Sebastian Theodora Ursula Valentin Winifred Xavier Yolanda Zachary "
    "Aldous Bramwell Clementine Dashiell Eudora Florian Griselda Hartley Imogen Jocasta Kingsley Lysander Merriweather "
    "Norbert Anselm Blanche Cuthbert Dorothea Edmund Felicity Godfrey Hermione Isidore Josephine Lambert Mathilda "
    "Neville Odette Phineas Rowena Silas Tabitha Ulric Veronica"
).split()
TITLES = (
    "Commander", "Captain", "Doctor", "Saint", "Old", "Miss", "Baron", "Judge", "Sister", "Colonel", "Maestro", "Lady",
    "Uncle", "Brother", "Queen", "Professor",
)  # fmt: skip
NOUNS = (
    "portrait", "expedition", "souvenir", "almanac", "memorial", "harbour", "lantern", "ledger", "carnival", "orchard",
    "observatory", "gazette", "voyage", "regatta", "breakfast", "tabby", "hoard", "clock", "silhouette", "specimen",
    "facsimile", "garage", "section", "lens", "dahlia",
)  # fmt: skip
SETTINGS = (
    "in orange suit", "with velvet curtain", "after the storm", "at noon", "by candlelight", "of 1924", "for the fair",
    "under glass", "with silver frame", "behind the mill", "on the quay", "in winter",
)  # fmt: skip
TAILS = (
    "archive print", "museum scan", "limited edition poster", "stock photo", "front cover", "collector card",
    "season 2 promo", "canvas print", "press kit",
)  # fmt: skip
PRODUCTS = ("phone case", "wall calendar", "travel mug", "rug", "tote bag", "pillow cover", "sticker", "shower curtain")
EDITIONS = ("gift edition", "outlet sale", "handmade")


def named(rng: Rng, name: str, noun: str | None = None) -> str:
    """Return a caption around one name. Every other word occurs in ordinary captions too."""
    noun = noun or pick(rng, NOUNS)
    setting, tail = pick(rng, SETTINGS), pick(rng, TAILS)
    forms = (
        f"{pick(rng, TITLES)} {name} {noun} {setting}, {tail}",
        f"{name} {noun} {setting} - {tail}",
        f"The {name} {noun}, {tail} {setting}",
    )
    return pick(rng, forms)


def decorate(rng: Rng, caption: str) -> str:
    """Give an ordinary caption some of the words that the captions of duplicates use."""
    forms = (
        f"{caption}, {pick(rng, TAILS)}",
        f"{caption} {pick(rng, SETTINGS)}",
        f"{pick(rng, NOUNS)}: {caption}",
        f"{pick(rng, TITLES)} {pick(rng, NOUNS)}, {caption}",
        f"{caption}, {pick(rng, PRODUCTS)}, {pick(rng, EDITIONS)}",
    )
    return pick(rng, forms)
