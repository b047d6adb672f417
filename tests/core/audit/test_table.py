"""The lines of an audit."""

from dataclasses import replace

from memguard.audit.record import Audit
from memguard.audit.table import lines, rows
from memguard_pack.tests.core.audit.test_record import EVIL
from memguard_pack.tests.core.audit.test_record import audit as audit_of


def test_lines_have_columns_and_name_what_the_last_checkpoint_copies():
    found = lines(audit_of(0, 2))
    assert found[0].split() == ["checkpoint", "copied", "threshold", "Z", "p", "p", "of", "own", "pictures"]
    assert found[1].startswith("e4 (epoch 4)  0 of 4") and found[2].startswith("e8 (epoch 8)  2 of 4")
    assert found[3:] == [f"copied: {i}.png (likeness 0.90): caption {i}" for i in range(2)]
    assert [len(line) for line in rows(audit_of(0, 2))] == 3 * [6]


def test_what_failed_is_a_line_under_a_narrow_table():
    found = audit_of(0, 2)
    errors = ("x: is damaged " * 20 + "\x1b", "no name in it")
    failed = [replace(found.checkpoints[0], name="x", pictures=(), error=error) for error in errors]
    told = lines(replace(found, checkpoints=(*found.checkpoints, *failed)))
    assert max(map(len, told[:5])) == len(told[0]) < 80 and told[3] == "x (epoch 4)   not audited"
    assert told[5:7] == ["x: is damaged " * 20 + r"\x1b", "x: no name in it"]
    assert told[7:] == lines(found)[3:]  # the copies of the last one that was audited


def test_a_terminal_does_not_obey_a_name():
    each = audit_of(1).checkpoints[0]
    told = replace(each, name=EVIL, pictures=(replace(each.pictures[0], caption=EVIL),))
    assert not any("\x1b" in line for line in lines(Audit("", {}, (told,))))


def test_a_picture_that_another_caption_brings_is_said_to_come_from_there():
    each = audit_of(1).checkpoints[0]
    astray = replace(each.pictures[0], copies=0, captions=("b.png", "c.png"))
    (told,) = lines(Audit("", {}, (replace(each, pictures=(astray,)),)))[2:]
    assert "; it comes out of the caption of b.png): " in told
