"""The doors: `cromss <verb>` and `python -m cromss.<verb>`, their help, their exit status."""

import subprocess
import sys

import pytest

from cromss.__main__ import VERBS, main
from cromss.cli import verb


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)


def test_the_door_lists_every_verb_and_suggests_for_a_typo(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in VERBS)
    assert main(["swep"]) == 2
    assert "did you mean 'sweep'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert f"cromss {name}" in capsys.readouterr().out


def test_help_imports_nothing_heavy():
    code = "import sys, cromss.__main__ as m\ntry:\n m.main(['sweep', '--help'])\nexcept SystemExit:\n pass\n"
    heavy = "print([x for x in ('ray', 'mlflow', 'torchmetrics', 'segmentation_models_pytorch') if x in sys.modules])"
    assert run("-c", code + heavy).stdout.endswith("[]\n")


def test_a_mistake_is_told_in_the_verbs_name_and_ends_with_2():
    done = run("-m", "cromss.pretrain", "--set", "optim.lrr=1", "--print-config")
    assert done.returncode == 2
    assert done.stderr == "pretrain: optim.lrr: unknown key; did you mean 'lr'? valid: lr, weight_decay, batch_size, " \
                          "epochs, schedule, precision\n"  # fmt: skip


def test_a_diverged_training_ends_with_1_and_ctrl_c_with_130(capsys):
    @verb
    def diverged(argv):
        raise FloatingPointError("step 3: the loss is not finite")

    @verb
    def interrupted(argv):
        raise KeyboardInterrupt

    assert diverged([]) == 1
    assert "the loss is not finite" in capsys.readouterr().err
    assert interrupted([]) == 130
    assert "the same command" in capsys.readouterr().err
