"""One function per kind of input: it makes one from a seeded generator, runs a command on it and checks what came."""

import json
import shutil
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save

from memguard import neurons
from memguard.records import NeuronSet

from . import odd
from .bench import Bench, Broken, compare, contents, rows, usable
from .lists import any_list

RUN = ["--model", "MODEL", "--num-inference-steps", "2"]
WHOLE = "--batch-size --num-images --steps --num-inference-steps --height --width --seed".split()
BROKEN = "--guidance-scale --sensitivity".split()
LEFT = ("steps", "height")  # of what costs time and not thought


def scan(random: Random, bench: Bench) -> None:
    """A list and a new results file: a row for every prompt."""
    source, prompts, options = any_list(random, bench.folder)
    out = bench.folder / f"out{random.choice(('.jsonl', '.csv', '.parquet', '.txt'))}"
    done = bench.run(["scan", str(source), *options, "--out", str(out), *RUN])
    if prompts is None or out.suffix == ".txt":
        if done.code == 0 and not out.exists():
            raise Broken(f"{source.name}: no results")
    elif usable(prompts) != (done.code == 0):
        raise Broken(f"exit code {done.code} for {prompts!r:.500}")
    else:
        compare(out, prompts)
    if done.code == 0 and out.exists() and random.random() < 0.5:
        resume(random, bench, source, options, out)


def resume(random: Random, bench: Bench, source: Path, options: list[str], out: Path) -> None:
    """Results that were cut off, damaged, or made under other settings, and --resume."""
    held, whole = rows(out), out.read_bytes()
    words = ["scan", str(source), *options, "--out", str(out), *RUN, "--resume"]
    if random.random() < 0.3:
        words += random.choice((["--seed", "7"], ["--sensitivity", "90"], ["--negative-prompt", odd.prompt(random)]))
        changed = words[-2:] != ["--negative-prompt", "None"]
        if bench.run(words).code != 2 and changed:
            raise Broken(f"{words}: other settings were accepted")
    elif out.suffix != ".parquet" and random.random() < 0.5:
        out.write_bytes(whole[: random.randint(0, len(whole))])
        done = bench.run(words, may_change=(out,))
        if done.code == 0 and rows(out) != held:
            raise Broken(f"{words}: {len(rows(out))} rows of {len(held)} after a cut")
    else:
        out.write_bytes(odd.damaged(random, whole))
        done = bench.run(words, may_change=(out,) if out.read_bytes() else ())
        if done.code == 0 and len(rows(out)) < len(held):
            raise Broken(f"{words}: rows were lost")


def foreign(random: Random, bench: Bench) -> None:
    """A file of somebody else where results, pictures, pages or neurons are to go: it stays as it is."""
    source = bench.folder / "list.txt"
    source.write_text("a red fox\n")
    name = random.choice(("x.jsonl", "x.csv", "x.parquet", "x.parquet.jsonl", "x.html", "x.safetensors", "folder"))
    path = bench.folder / name
    data = random.choice(
        (
            b"prompt,note\na,b\n",
            b"prompt,note\na",
            b'{"prompt": "a"}\n',
            b'{"index": 0, "x": 1}\n',
            bytes(9000),
            b"PAR1",
        )
    )
    if name == "folder":
        path.mkdir()
        (path / random.choice(("reports.jsonl", "0000-0-0-a-red-fox.png"))).write_bytes(data)
    elif random.random() < 0.2:
        path.symlink_to(source)
    elif random.random() < 0.1:
        path.mkdir()
    else:
        data = odd.damaged(random, data) or data
        # what begins as a row of memguard does cannot be told from one that was cut off
        path.write_bytes(data + b"\n" if data.startswith(b'{"index"') else data)
    how = random.choice((["--resume"], ["--force"], []))
    target = str(path).replace(".parquet.jsonl", ".parquet")
    words = ["scan", str(source), *RUN, "--out", target, *how]
    if name == "folder":
        words = ["generate", "a red fox", *RUN, "--out", target, *(how if how != ["--force"] else [])]
    elif name == "x.html":
        words = ["explain", "--prompt", "a red fox", *RUN, "--html", target]
    elif name == "x.safetensors":
        words = random.choice(
            (
                ["testbed", "export", "--format", "checkpoint", target],
                ["neurons", "find", "a", *RUN[:2], "--ordinary", str(source), "--out", target],
            )
        )
    if bench.run(words).code != 2:
        raise Broken(f"{words}: went on")


def settings(random: Random, bench: Bench) -> None:
    """Numbers and names that no run can have."""
    source = bench.folder / "list.txt"
    source.write_text("a red fox\n" * 60)
    command = random.choice(("scan", "calibrate", "explain", "generate", "find"))
    words = {
        "scan": ["scan", str(source)],
        "calibrate": ["calibrate", str(source), "--out", str(bench.folder / "profiles")],
        "explain": ["explain", "--prompt", "a red fox", "--method", "attention"],
        "generate": ["generate", "a red fox", "--out", str(bench.folder / "pictures")],
        "find": [
            "neurons",
            "find",
            "a red fox",
            "--statistics",
            str(source),
            "--out",
            str(bench.folder / "n.safetensors"),
        ],
    }[command]
    option = random.choice([*WHOLE, *BROKEN, "--device", "--dtype", "--detector", "--reference", "--mitigation"])
    given = str(random.choice((*odd.NUMBERS, *odd.TEXTS, "9" * 5000, "float16", "cuda:99", "padding:tau=nan")))
    if option in ("--height", "--width") and given in ("64", "8"):
        given = "16"
    bench.run([*words, *(RUN[:2] if command == "find" else RUN), option, given])


def generate(random: Random, bench: Bench) -> None:
    """Prompts as arguments and in files, into folders, twice."""
    source, prompts, options = any_list(random, bench.folder)
    if prompts is not None:
        prompts = prompts[:3]
        source = source.with_suffix(".jsonl")
        source.write_bytes("\n".join(map(json.dumps, prompts)).encode())
        options = []
    out = bench.folder / "pictures"
    words = ["generate", "--file", str(source), *options, "--out", str(out), *RUN]
    done = bench.run(words)
    reports = out / "reports.jsonl"
    if prompts is not None and reports.exists():
        compare(reports, prompts)
    before = contents(out) if out.exists() else {}
    again = bench.run([*words, *random.choice(([], ["--resume"], ["--resume", "--seed", "1"]))])
    if done.code == 0 and (contents(out) != before or (again.code != 2 and "--resume" not in again.out + again.err)):
        held = contents(out)
        if any(held.get(path) != data for path, data in before.items()):
            raise Broken(f"{words}: a second run changed pictures")


def explain(random: Random, bench: Bench) -> None:
    """Prompts as arguments and on stdin."""
    prompt = odd.prompt(random)
    stdin = odd.damaged(random, prompt.encode("utf-8", "surrogatepass"))
    given = "-" if random.random() < 0.4 else prompt
    method = random.choice(("gradient", "ablation", "attention"))
    more = random.choice(([], ["--json"], ["--html", str(bench.folder / f"{odd.prompt(random)[:9].strip()}.html")]))
    bench.run(["explain", f"--prompt={given}", "--method", method, *RUN, *more], stdin)


def calibrate(random: Random, bench: Bench) -> None:
    """Lists to calibrate with."""
    source, _, options = any_list(random, bench.folder)
    if random.random() < 0.3:
        values = [odd.value(random) if random.random() < 0.2 else f"a cat {i}" for i in range(random.randint(45, 70))]
        source = bench.folder / "ordinary.jsonl"
        source.write_text("\n".join(json.dumps(v if not isinstance(v, dict) else None) for v in values))
        options = []
    bench.run(["calibrate", str(source), *options, *RUN, "--out", str(bench.folder / "profiles")])


def profile(random: Random, bench: Bench) -> None:
    """A profile that was damaged or edited."""
    path = bench.folder / "profile.json"
    if random.random() < 0.5:
        values = json.loads(bench.profile)
        for _ in range(random.choice((1, 1, 3))):
            values = odd.changed(random, values)
        path.write_bytes(odd.text(values).encode("utf-8", "surrogatepass"))
    else:
        path.write_bytes(odd.damaged(random, bench.profile.encode()))
    command = random.choice((["scan", "-"], ["generate", "a red fox", "--out", str(bench.folder / "pictures")]))
    bench.run([*command, *RUN, "--profile", str(path)], b"a red fox\n")


def neuron_files(random: Random, bench: Bench) -> None:
    """Neuron sets, statistics and NeMo's tables that were damaged or edited."""
    names = [f"{p}.{i}.attn2" for p in ("down_blocks", "mid_block", odd.prompt(random)) for i in range(2)]
    held = {name: tuple(sorted(random.sample(range(32), 3))) for name in names}
    path, other = bench.folder / "a.safetensors", bench.folder / "b.safetensors"
    try:
        neurons.save(NeuronSet(held), other)
    except (UnicodeEncodeError, ValueError):
        neurons.save(NeuronSet({}), other)
    facts = {"scale": 0.0, "model": "", "provenance": "x", "ssim_before": None, "ssim_after": None, "rows": 0}
    text = odd.text(odd.changed(random, facts)).encode("utf-8", "replace").decode().replace("\x00", "")
    kind = random.choice(("memguard-neuron-set", "memguard-neuron-set", "memguard-activation-statistics", "x"))
    metadata = {"kind": kind, "schema": random.choice(("1", "1", "2", "x")), "facts": text}
    tensor = random.choice((torch.arange(3, dtype=torch.int32), torch.ones(2), torch.zeros(0), torch.ones(2, 2).int()))
    data = save({"mid_block.attn2": tensor}, metadata)
    path.write_bytes(data if random.random() < 0.6 else odd.damaged(random, other.read_bytes()))
    table = bench.folder / "t.csv"
    cell = odd.text(random.choice(([[5], [], [], [], [], [], [9]], odd.value(random), [[2**31]] + 6 * [[]])))
    head = "Caption;URL;Initial Neurons;Initial SSIM;Refined Neurons;Refined SSIM\n"
    line = f'a;u;"{cell}";0.1;"{cell}";{random.choice(("0.2", "nan", "x", ""))}\n'
    table.write_bytes(odd.damaged(random, (head + line).encode("utf-8", "replace")))
    out = str(bench.folder / "new.safetensors")
    words = random.choice(
        (
            ["show", str(path)],
            ["show", str(path), "--json"],
            ["merge", str(path), str(other), "--out", out],
            ["diff", str(other), str(path)],
            ["import", str(table), "--out", out],
            ["find", "a red fox", "--statistics", str(path), "--out", out, *RUN[:2]],
        )
    )
    bench.run(["neurons", *words])
    if random.random() < 0.3:
        pictures = str(bench.folder / "pictures")
        bench.run(["generate", "a red fox", *RUN, "--out", pictures, "--always", "--neurons", str(path)])


def model_folders(random: Random, bench: Bench) -> None:
    """A model's folder of which one file is damaged, empty or missing."""
    folder = bench.folder / "model"
    shutil.copytree(bench.model, folder)
    path = random.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
    kind = random.randrange(4)
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.write_bytes(b"")
    elif kind == 2 and path.suffix == ".json" and path.stat().st_size < 20_000:
        path.write_bytes(odd.text(odd.changed(random, json.loads(path.read_bytes()))).encode("utf-8", "replace"))
    else:
        path.write_bytes(odd.damaged(random, path.read_bytes()))
    bench.run(["scan", "-", "--model", str(folder), "--num-inference-steps", "2"], b"a red fox\n")


def arguments(random: Random, bench: Bench) -> None:
    """Words that are no command line."""
    first = random.choice("scan explain generate calibrate neurons testbed demo doctor".split() + [odd.prompt(random)])
    rest = [random.choice((*odd.TEXTS, "--model", "--json", "--resume", "show", "export", "a" * 300)) for _ in range(3)]
    rest = [word for word in rest if word != "--help"]
    if first in ("demo", "doctor", "testbed"):  # what these do takes a while where the words happen to be right
        rest = [*rest, "--no-such-option"]
    bench.run([first, *rest], b"a red fox\n")


def stdin(random: Random, bench: Bench) -> None:
    """What comes through a pipe."""
    data = odd.damaged(random, "\n".join(odd.prompt(random) for _ in range(5)).encode("utf-8", "replace"))
    bench.run(["scan", *RUN, *random.choice(([], ["--json"], ["--out", str(bench.folder / "o.csv")]))], data)


CASES = (
    scan,
    scan,
    foreign,
    settings,
    generate,
    explain,
    calibrate,
    profile,
    neuron_files,
    neuron_files,
    model_folders,
    arguments,
    stdin,
)
