"""A method's file to start from keeps its contract, and files that break it are told so in plain words."""

from pathlib import Path
from typing import Any

import pytest

from metatuner.authoring import new_method
from metatuner.authoring.conformance import Finding, TinyWorld, check_method
from metatuner.cli import main
from metatuner.errors import UserError
from metatuner.forkserver import ADDRESS, ForkServer
from metatuner.harness.registry import Registry
from metatuner.hashing import ROOT

BAD = """
from pathlib import Path
import random, time
from metatuner.harness.method import Method
from metatuner.harness.policies import StaticPolicy


class Bad(Method):
    name = "bad"
    title = "bad"
    family = "prompt"
    reference = "none"

    def fit(self, lab):
        Path({outside!r}).write_text("here")
        return StaticPolicy(lab, {{name: f"think {{random.SystemRandom().random()}}" for name in lab.benchmarks}})
"""


def findings(file: Path, home: Path) -> dict[str, Finding]:
    """What is found, by the check's first words."""
    told: list[Finding] = []
    assert check_method(file, home, {}, told.append) == told
    return {finding.check: finding for finding in told}


def test_a_new_methods_file_is_a_method_and_taken_names_are_refused(tmp_path: Path) -> None:
    path = new_method("my_search", "prompt", tmp_path)
    cls = Registry([path])["my_search"].cls
    assert (cls.name, cls.family, cls.__name__) == ("my_search", "prompt", "MySearch")
    with pytest.raises(UserError, match="exists already; remove it"):
        new_method("my_search", "prompt", tmp_path)
    with pytest.raises(UserError, match="'sft' exists already"):
        new_method("sft", "prompt", tmp_path)
    with pytest.raises(UserError, match="no method name"):
        new_method("My-Search", "prompt", tmp_path)


@pytest.fixture
def forks(server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """`check-method`'s commands are forks of the server, but those whose opened files are watched."""
    monkeypatch.setenv(ADDRESS, str(server.address))


def test_the_template_keeps_the_contract(forks: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = new_method("my_search", "prompt", tmp_path)
    assert main(["check-method", str(path)]) == 0
    assert "10 checks, 0 failed" in capsys.readouterr().out


def test_a_method_of_the_project_can_be_checked_too(tmp_path: Path) -> None:
    world = TinyWorld(ROOT / "baselines" / "sft.py", "sft", tmp_path, {"settings": {"epochs": 2}})
    config = world.config("first")
    assert config.extra_methods == []
    _, fit = world.plan(config)
    assert fit.method == "sft"
    assert fit.settings.epochs == 2


def test_a_method_that_breaks_the_contract_is_told_how(
    forks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Temporary folders may be written to; the one of this test is not, wherever the project and pytest's folders lie.
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    outside = tmp_path / "outside"
    file = tmp_path / "bad.py"
    file.write_text(BAD.format(outside=str(outside)))
    found = findings(file, tmp_path / "home")
    failed = {check: finding.detail for check, finding in found.items() if finding.status == "fails"}
    assert set(failed) == {
        "it writes nowhere but in its folder",
        "the same seed gives the same files, whatever tune and test rows say",
        "killed in the middle, it leaves nothing half done, and the next run makes the same files",
    }
    assert str(outside) in failed["it writes nowhere but in its folder"]
    assert "two runs differ in policy/manifest.json" in failed[next(check for check in failed if "same seed" in check)]


def test_a_method_that_raises_is_shown_with_its_traceback(forks: None, tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text(BAD.format(outside="x").replace("Path('x').write_text(\"here\")", 'raise ValueError("my mistake")'))
    found = findings(file, tmp_path / "home")
    (fits,) = [finding for check, finding in found.items() if check == "it fits"]
    assert fits.status == "fails"
    assert "ValueError: my mistake" in fits.detail
    assert "bad.py" in fits.detail
    assert "in fit" in fits.detail


def test_a_file_that_does_not_import_or_has_no_method_is_refused(tmp_path: Path) -> None:
    home: Any = tmp_path / "home"
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(UserError, match="no method here"):
        findings(tmp_path / "empty.py", home)
    (tmp_path / "gone.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(UserError, match=r"gone.py does not import: ModuleNotFoundError: .*nothing_of_this_name.*mend"):
        findings(tmp_path / "gone.py", home)
    (tmp_path / "nameless.py").write_text(
        "from metatuner.harness.method import Method\n\n\nclass Mine(Method):\n    def fit(self, lab): ...\n"
    )
    with pytest.raises(UserError, match="class Mine needs `name`"):
        findings(tmp_path / "nameless.py", home)
