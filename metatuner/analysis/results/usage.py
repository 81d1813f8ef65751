"""A run's CPU time by step, with process start and imports counted separately."""

from dataclasses import dataclass
from pathlib import Path

from metatuner.errors import UserError
from metatuner.files import read_json


@dataclass
class StepUsage:
    """Totals of one step's jobs."""

    jobs: int = 0
    cpu_seconds: float = 0.0
    startup_cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    peak_memory_bytes: int = 0
    """Peak memory of the largest job."""

    def add(self, other: "StepUsage") -> None:
        """Add the totals of other jobs."""
        self.jobs += other.jobs
        self.cpu_seconds += other.cpu_seconds
        self.startup_cpu_seconds += other.startup_cpu_seconds
        self.wall_seconds += other.wall_seconds
        self.peak_memory_bytes = max(self.peak_memory_bytes, other.peak_memory_bytes)


def read_usage(folder: Path) -> dict[str, StepUsage]:
    """Totals by step, from the files that jobs leave in `folder`."""
    steps: dict[str, StepUsage] = {}
    remedy = "remove it; the job writes it again when it runs"
    for path in sorted(folder.glob("*.json")):
        record = read_json(path, remedy)
        try:
            job = StepUsage(
                1,
                float(record["cpu_seconds"]),
                float(record["startup_cpu_seconds"]),
                float(record["wall_seconds"]),
                int(record["peak_memory_bytes"]),
            )
            step = str(record["step"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not a job's usage ({error!r}); {remedy}") from None
        steps.setdefault(step, StepUsage()).add(job)
    if not steps:
        raise UserError(f"no usage in {folder}; run `snakemake --cores all --config preset=NAME` first")
    return steps


def summarise(folder: Path) -> str:
    """A text table of all steps, the costliest first, and the share of CPU time in process start and imports."""
    steps = read_usage(folder)
    total = StepUsage()
    for step in steps.values():
        total.add(step)
    lines = [f"{'step':<14}{'jobs':>6}{'CPU s':>10}{'start-up s':>12}{'share':>8}{'wall s':>10}{'peak MiB':>10}"]
    for name, step in [*sorted(steps.items(), key=lambda each: (-each[1].cpu_seconds, each[0])), ("total", total)]:
        lines.append(
            f"{name:<14}{step.jobs:>6}{step.cpu_seconds:>10.1f}{step.startup_cpu_seconds:>12.1f}{_share(step):>8}"
            f"{step.wall_seconds:>10.1f}{step.peak_memory_bytes / 2**20:>10.0f}"
        )
    lines.append(f"{_share(total)} of the CPU time is process start and imports (start-up).")
    lines.append("Wall time adds up over jobs, also over those that ran side by side.")
    return "\n".join(lines)


def _share(step: StepUsage) -> str:
    return f"{100 * step.startup_cpu_seconds / step.cpu_seconds:.1f} %" if step.cpu_seconds else "-"
