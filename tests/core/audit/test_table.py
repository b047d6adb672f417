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


def test_a_terminal_does_not_obey_a_name():
    each = audit_of(1).checkpoints[0]
    told = replace(each, name=EVIL, pictures=(replace(each.pictures[0], caption=EVIL),))
    assert not any("\x1b" in line for line in lines(Audit("", {}, (told,))))
