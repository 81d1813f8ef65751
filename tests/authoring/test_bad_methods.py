"""Methods that break their contract, side by side in one run: each leaves a hole with its reason, the others go on.

The steps are those of the workflow, one after another. That Snakemake goes on after a failed cell is tested with it.
"""

import csv
import os
from pathlib import Path

import pytest

from metatuner.config import dump_config, load_config
from metatuner.files import write_text
from metatuner.forkserver import ForkServer
from metatuner.plan import Plan

HEAD = """
from metatuner.harness.method import Method
from metatuner.harness.policies import StaticPolicy
from metatuner.harness.policy import Policy, register_policy
from metatuner.harness.query import Prepared


class Bad(Method):
    name = "{name}"
    title = "{name}"
    family = "prompt"
    reference = "none"

    def fit(self, lab):
"""

POLICY = """

@register_policy("{name}")
class Own(Policy):
    def __init__(self, ground):
        self.ground = ground

    def prepare(self, queries):
        {prepare}

    def write(self, folder):
        return {{}}

    @classmethod
    def read(cls, folder, state, ground):
        return cls(ground)
"""

SPEND = """        from metatuner.harness.query import to_query
        try:
            while True:
                lab.answer([to_query(row) for row in lab.train], "count")
        except Exception:
            pass
        return StaticPolicy(lab, dict.fromkeys(lab.benchmarks, "count"))
"""

STATIC = '        return StaticPolicy(lab, dict.fromkeys(lab.benchmarks, "count"))\n'
OTHERS = """        import os, json
        fits = lab.workdir.parents[1]
        found = {{json.loads(path.read_text())["method"]: path.parent for path in fits.glob("*/fit.json")}}
        other = found["victim"]
"""
KEPT = """        import tempfile
        from pathlib import Path
        (lab.workdir / "state.bin").write_text("mine")
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "more.bin").write_text("mine")
"""
FINE = (
    HEAD + KEPT + "        return Own(lab)\n" + POLICY.replace("{prepare}", 'return Prepared(["count"] * len(queries))')
)
"""A policy of its own that knows no more of the ground than the contract says, and files where they may be."""


def own(prepare: str, write: str = "return {{}}") -> str:
    """A method with a policy of its own that prepares, and is saved, as told."""
    return HEAD + "        return Own(lab)\n" + POLICY.replace("{prepare}", prepare).replace("return {{}}", write)


BAD = {
    "raises": (HEAD + '        raise ValueError("my own mistake, $x$")\n', "ValueError: my own mistake, $x$"),
    "returns": (HEAD + '        return "count"\n', "fit returned str, not a Policy"),
    "leaves": (HEAD + "        raise SystemExit(7)\n", "it called sys.exit(7)"),
    "spends": (HEAD + SPEND, "budget 'little': 32 lm_calls used of 20, and the method went on"),
    "hangs": (HEAD + "        while True:\n            pass\n", "budget 'short': not done after 2 s"),
    "writes": (
        HEAD + '        open("{outside}", "w").close()\n'
        '        return StaticPolicy(lab, dict.fromkeys(lab.benchmarks, "count"))\n',
        "it wrote outside its folder: {outside}; use lab.workdir",
    ),
    "answers": (
        HEAD + "        return Own(lab)\n" + POLICY.replace("{prepare}", 'raise KeyError("no answer")'),
        "KeyError: 'no answer'",
    ),
    "imports": ("import nothing_of_this_name\n", "imports.py does not import: ModuleNotFoundError"),
    "empty": ("x = 1\n", "empty.py: no method here"),
    "killed": (HEAD + "        import os\n        os.kill(os.getpid(), 9)\n", "the process was killed (signal 9)"),
    "crashes": (own("import ctypes; ctypes.string_at(0)"), "the process was ended by signal 11 (SIGSEGV)"),
    "interrupts": (HEAD + "        raise KeyboardInterrupt\n", "it raised KeyboardInterrupt, which is no Exception"),
    "nameless": (
        HEAD + "        class Odd(Exception):\n            def __str__(self):\n                raise ValueError\n"
        "        raise Odd\n",
        "Odd: its __str__ fails",
    ),
    "half": (HEAD + '        raise ValueError("half a character: " + chr(0xD800))\n', "half a character: \\ud800"),
    "victim": (FINE, "policy/manifest.json has 0 bytes instead of"),
    "overwrites": (
        HEAD + OTHERS + '        open(other / "policy" / "manifest.json", "w").close()\n' + STATIC,
        "/policy/manifest.json; use lab.workdir",
    ),
    "notes": (
        own('open("{outside}", "w").close(); return Prepared(["count"] * len(queries))'),
        "it wrote outside its folder: {outside}; a policy answers from what `fit` saved",
    ),
    "diverges": (
        own(
            'return Prepared(["count"] * len(queries))',
            "import torch; from safetensors.torch import save_file; "
            'save_file({{"w": torch.tensor([1.0, float("nan")])}}, folder / "own.safetensors"); return {{}}',
        ),
        "own.safetensors: w holds NaN or infinite values; training diverged",
    ),
}
"""A method's file, and what the table says of it."""

GOOD = {
    "fine": FINE,
    "wanders": (HEAD + '        import os; os.chdir("/")\n        return Own(lab)\n' + POLICY)
    .replace("{prepare}", 'import os; os.chdir("/"); return Prepared(["count"] * len(queries))')
    .replace("return {{}}", 'import os; os.chdir("/"); return {{}}'),
    "lingers": HEAD
    + "        import threading, time\n        threading.Thread(target=time.sleep, args=(600,)).start()\n"
    + STATIC,
}
"""Methods that have a score whatever they do to the process: they change its folder, or leave a thread behind."""


@pytest.fixture(scope="module")
def run(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, str]]:
    """The results folder after every step with all of them, what was said, and the reason to be seen for each."""
    folder = tmp_path_factory.mktemp("bad")
    outside = folder / "elsewhere.txt"  # no temporary place to the run, whose own is set apart below
    files, wanted = [], {}
    for name, (code, reason) in {**BAD, **{name: (code, "") for name, code in GOOD.items()}}.items():
        file = folder / f"{name}.py"
        file.write_text(code.replace("{outside}", str(outside)).format(name=name) if "{" in code else code)
        files.append(str(file))
        wanted[name] = reason.replace("{outside}", str(outside))
    temporary = folder / "temporary"
    temporary.mkdir()
    config = load_config(
        "smoke",
        {
            "run": "main",
            "results": str(folder / "results"),
            "cache": str(folder / "cache"),
            "experiments": {"main": {"methods": ["zero_shot", *wanted], "benchmarks": ["gsm8k"], "seeds": [0]}},
            "extra_methods": files,
            "budgets": {"short": {"seconds": 2}, "little": {"lm_calls": 20}},
            "methods": {"hangs": {"budget": "short"}, "spends": {"budget": "little"}},
        },
    )
    plan = Plan(config)
    write_text(plan.layout.config, dump_config(config))
    said = []

    def step(*words: str, status: int = 0) -> None:
        line = ["metatuner", *words, "--config", str(plan.layout.config)]
        done = server.run(line, folder, {**os.environ, "TMPDIR": str(temporary)})
        assert done.returncode == status, done.stderr
        said.append(done.stdout + done.stderr)

    for role in plan.keys.nano_roles:
        step("pretrain", "--role", role)
    step("world")
    step("data", "--benchmark", "gsm8k")
    for name in plan.packs.fits:
        step("fit", "--pack", name)
    for name in plan.packs.evaluations:
        step("evaluate", "--pack", name)
    for words in ("scores", "efficiency", "claims", "table --name all", "figure --name all", "provenance", "report"):
        step(*words.split())
    step("verdict", status=1)
    return plan.layout.root, "".join(said), wanted


def test_each_leaves_a_hole_with_its_reason_and_no_score(run: tuple[Path, str, dict[str, str]]) -> None:
    results, _, wanted = run
    with open(results / "scores.csv", encoding="utf-8", newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    for name in BAD:
        assert (rows[name]["status"], rows[name]["score"]) == ("failed", ""), name
        assert wanted[name] in rows[name]["reason"], rows[name]["reason"]
    assert {name for name, row in rows.items() if row["status"] == "ok"} == {"zero_shot", *GOOD}


def test_nothing_half_done_is_left(run: tuple[Path, str, dict[str, str]]) -> None:
    results, _, _ = run
    assert list(results.rglob(".*.tmp")) == []
    assert list(results.parent.glob("temporary/*")) == []


def test_all_that_follows_is_made_and_the_run_says_what_failed(run: tuple[Path, str, dict[str, str]]) -> None:
    results, said, wanted = run
    for name in ("tables/table_1.md", "tables/table_5.md", "figures/figure_main.png", "claims.md", "report.html"):
        assert (results / name).stat().st_size > 0, name
    with open(results / "efficiency.csv", encoding="utf-8", newline="") as file:
        assert {row["method"] for row in csv.DictReader(file)} == {"zero_shot", *GOOD}
    report = (results / "report.html").read_text(encoding="utf-8")
    for name in BAD:
        assert f"{name} on gsm8k, seed 0: " in said, name
        assert wanted[name].split("'")[0].split("`")[0] in report.replace("&#x27;", "'"), name
    assert f"{len(BAD)} cells failed" in said
    traces = "".join(path.read_text() for path in (results / "logs" / "failed").iterdir())
    assert "my own mistake" in traces
    assert "raises.py" in traces
