"""What the repository promises around its code: pins, environments, presets, documented commands, clean files."""

import dataclasses
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from metatuner.commands import groups
from metatuner.config import load_config, preset_names
from metatuner.harness.describe import field_meanings
from metatuner.method.config import MetaTunerConfig, WarmUpConfig

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def pins(name: str) -> dict[str, Version]:
    lines = (ROOT / "constraints" / name).read_text(encoding="utf-8").splitlines()
    found = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    assert len({package for package, _ in found}) == len(found), f"constraints/{name} pins a package twice"
    return {canonicalize_name(package): Version(version) for package, version in found}


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def loaded(path: Path) -> Any:
    """A script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands(page: Path) -> list[str]:
    """Lines of the page's bash blocks, comments and continued lines put aside."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


# ---- pins ------------------------------------------------------------------------------------------------------------


def test_constraints_cover_every_dependency_and_theirs() -> None:
    pinned = pins("cpu.txt")
    extras = PROJECT["optional-dependencies"]
    todo = [Requirement(text) for text in PROJECT["dependencies"] + extras["test"] + extras["docs"] + extras["cluster"]]
    seen, wrong = set(), []
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name not in pinned:
            wrong.append(f"{requirement} has no pin")
        elif not requirement.specifier.contains(pinned[name], prereleases=True):
            wrong.append(f"{requirement} excludes the pin {pinned[name]}")
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                further = [Requirement(text) for text in requires(name) or ()]
            except PackageNotFoundError:  # the cluster extra is not installed everywhere
                continue
            todo += [each for each in further if each.marker is None or each.marker.evaluate({"extra": extra})]
    assert not wrong, "constraints/cpu.txt: " + "; ".join(sorted(set(wrong)))


def test_cuda_constraints_are_the_cpu_ones_and_more() -> None:
    text = (ROOT / "constraints" / "cuda.txt").read_text(encoding="utf-8")
    assert "-c cpu.txt" in text.splitlines()
    assert not pins("cuda.txt").keys() & pins("cpu.txt").keys()


def test_conda_environment_has_the_pins_of_the_constraints() -> None:
    environment = yaml.safe_load((ROOT / "envs" / "metatuner.yaml").read_text(encoding="utf-8"))
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    found = {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in pip)}
    assert found == pins("cpu.txt"), "envs/metatuner.yaml is behind constraints/cpu.txt: run `make pins`"


def test_environments_agree_on_python_and_install_with_the_constraints() -> None:
    environment = yaml.safe_load((ROOT / "envs" / "metatuner.yaml").read_text(encoding="utf-8"))
    containerfile = (ROOT / "envs" / "Containerfile").read_text(encoding="utf-8")
    (image,) = re.findall(r"^FROM .*python:([\d.]+)", containerfile, flags=re.MULTILINE)
    assert f"python={image}" in environment["dependencies"]
    assert Version(image) >= Version(PROJECT["requires-python"].removeprefix(">="))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "make install" in containerfile
    assert "-c constraints/$(PINS).txt" in makefile


# ---- presets and profiles --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", preset_names())
def test_preset_loads(preset: str) -> None:
    config = load_config(preset)
    assert config.preset == preset
    assert config.experiments


def test_execution_profiles_name_rules_and_options_that_exist() -> None:
    from snakemake.cli import get_argument_parser

    options = {option.lstrip("-") for action in get_argument_parser()._actions for option in action.option_strings}
    rule_files = [ROOT / "Snakefile", *(ROOT / "workflow" / "rules").glob("*.smk")]
    named = re.compile(r"^\s*(?:use rule \w+ as|rule) (\w+)(?: with)?:", flags=re.MULTILINE)
    rules = set(named.findall("\n".join(file.read_text() for file in rule_files)))
    profiles = sorted((ROOT / "workflow" / "profiles").glob("*/config.yaml"))
    assert profiles
    for file in profiles:
        profile = yaml.safe_load(file.read_text(encoding="utf-8"))
        own = f"{profile['executor']}-"  # options of the executor's plugin
        unknown = {key for key in profile if key not in options and not key.startswith(own)}
        assert not unknown, f"{file.relative_to(ROOT)}: snakemake has no option {sorted(unknown)}"
        strangers = (profile.get("set-resources", {}).keys() | profile.get("groups", {}).keys()) - rules
        assert not strangers, f"{file.relative_to(ROOT)}: no rule {sorted(strangers)}"
        if "set-resources" in profile:  # says for all that loads models whether it gets a GPU; `use rule` inherits it
            blocks = [re.split(r"^\s*(?:use )?rule ", file.read_text(), flags=re.MULTILINE) for file in rule_files]
            loading = {block.split(":")[0].split()[0] for parts in blocks for block in parts[1:] if "gpu=1" in block}
            assert {"fit", "efficiency"} <= loading
            assert loading <= profile["set-resources"].keys(), file
            gpus = {each["gpu"] for each in profile["set-resources"].values()}
            assert gpus == {0 if file.parent.name.endswith("-cpu") else 1}, file


def test_kubernetes_scripts_submit_a_job_and_report_its_state(tmp_path: Path) -> None:
    """With a stand-in for kubectl that keeps what it is sent and answers what it is told."""
    scripts = ROOT / "workflow" / "profiles" / "kubernetes"
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        '#!/bin/sh\ncase $1 in create) cat > job.yaml; echo job.batch/metatuner-1 ;; get) echo "$STATE" ;; esac\n'
    )
    kubectl.chmod(0o755)

    def run(*command: str, **variables: str) -> str:
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", **variables}
        return subprocess.check_output(command, cwd=tmp_path, env=environment, text=True).strip()

    place = {"METATUNER_IMAGE": "registry.example/metatuner:0.1.0", "METATUNER_CLAIM": "checkout"}
    job = run(str(scripts / "submit.sh"), "2", "64000", "1", "/metatuner/job one.sh", **place)
    pod = yaml.safe_load((tmp_path / "job.yaml").read_text())["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert job == "job.batch/metatuner-1"
    assert container["command"] == ["bash", "/metatuner/job one.sh"]
    assert container["workingDir"] == container["volumeMounts"][0]["mountPath"] == str(tmp_path)
    assert container["resources"]["limits"] == {"memory": "64000M", "nvidia.com/gpu": "1"}
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "checkout"
    states = {"1/": "success", "/1": "failed", "/": "running"}
    assert {state: run(str(scripts / "status.sh"), job, STATE=state) for state in states} == states


# ---- documents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_commands_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) \?=", makefile, flags=re.MULTILINE))
    known = {each.name for group in groups().values() for each in group}
    presets = {*preset_names(), *re.findall(r"# config/presets/(\w+)\.yaml", page.read_text(encoding="utf-8"))}
    for line in commands(page):
        words = shlex.split(line)
        if words[0] == "make":
            given = {word.split("=")[0] for word in words[1:] if "=" in word}
            assert {word for word in words[1:] if "=" not in word} <= targets, f"{page.name}: {line}"
            assert given <= variables, f"{page.name}: {line}"
        if words[0] == "metatuner":
            assert words[1] in known, f"{page.name}: {line}; known: {sorted(known)}"
        for preset in re.findall(r"\b(?:preset|PRESET)=(\w+)", line):
            assert preset in presets, f"{page.name}: {line}"


def test_documented_preset_resolves() -> None:
    page = (ROOT / "docs" / "adding_a_model.md").read_text(encoding="utf-8")
    block, fetched, engine, proposer = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL))
    config = load_config(block.pop("extends"), block)
    assert config.models.actor.path == block["models"]["actor"]["path"]
    config = load_config("paper", fetched)
    assert config.models.actor.hub == fetched["models"]["actor"]["path"]
    served = load_config("paper", engine).models.actor
    assert served.engine is not None
    assert served.engine.model == served.path
    config = load_config("paper", proposer)
    assert config.models.proposer is not None
    assert config.models.proposer.model == proposer["models"]["proposer"]["model"]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "log.md"], ids=lambda page: page.name)
def test_files_of_the_project_that_a_page_names_are_there(page: Path) -> None:
    names = re.findall(r"`([\w.-]+(?:/[\w.-]+)+\.(?:py|yaml|smk|toml|jinja))`", page.read_text(encoding="utf-8"))
    rooms = (ROOT, ROOT / "metatuner", *(ROOT / "metatuner").iterdir())
    missing = [name for name in names if not any((room / name).is_file() for room in rooms)]
    assert not missing, f"{page.relative_to(ROOT)} names {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_files_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing, f"{page.relative_to(ROOT)} links to {missing}"


def test_pages_that_come_from_the_code_are_those_of_this_code() -> None:
    generate = loaded(ROOT / "docs" / "generate.py")
    for name in generate.PAGES:
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert text == generate.page(name), f"docs/{name} is behind the code: run `python docs/generate.py`"
        assert text.count("\n| `") > 15


def test_the_choices_are_those_that_docstrings_declare() -> None:
    text = (ROOT / "docs" / "choices.md").read_text(encoding="utf-8")
    fields_of = dataclasses.fields(MetaTunerConfig) + dataclasses.fields(WarmUpConfig)
    meanings = field_meanings(MetaTunerConfig) | field_meanings(WarmUpConfig)
    open_points = [field.name for field in fields_of if "The paper does not say" in meanings[field.name]]
    assert len(open_points) > 30
    assert [name for name in open_points if f"| `{name}` | " not in text] == []
    assert "| `objective` |" not in text  # the paper has all three
    assert "| `benchmarks.NAME.sizes.test` |" in text


def test_the_readme_is_short_and_prose_is_wrapped() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
    long = []
    for page in PAGES:
        code = False
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            code ^= line.startswith("```")
            free = code or line.startswith(("|", "![", "```")) or "](" in line or "`" in line
            if len(line) > 105 and not free:
                long.append(f"{page.name}:{number}: {len(line)} characters")
    assert long == []


def test_citation_and_changelog_name_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# ---- files -----------------------------------------------------------------------------------------------------------


def test_tracked_files_hold_no_path_of_one_machine() -> None:
    somewhere = re.compile(r"(?<![\w.~$}*-])/(?:home|root|Users|work|opt|mnt)/\w+|file:/{3}|[A-Z]:\\Users")
    found = []
    for path in tracked_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:  # a picture
            continue
        relative = path.relative_to(ROOT)
        found += [f"{relative}:{number}" for number, line in enumerate(lines, 1) if somewhere.search(line)]
    assert not found, "paths of one machine: " + ", ".join(found)


def test_every_listed_mutant_can_be_made_and_names_tests_that_exist() -> None:
    mutants = loaded(ROOT / "tests" / "mutants" / "run.py").read_mutants()
    assert len(mutants) > 100
    stale = []
    for mutant in mutants:
        try:
            compile(mutant.changed(), mutant.file, "exec")
        except (ValueError, SyntaxError, FileNotFoundError) as error:
            stale.append(f"{mutant.id}: {error}")
        for test in mutant.tests:
            file, _, name = test.partition("::")
            if name and f"def {name.partition('[')[0]}(" not in (ROOT / file).read_text(encoding="utf-8"):
                stale.append(f"{mutant.id}: no test {test}")
    assert stale == []
