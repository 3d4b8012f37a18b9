"""What a step of Sharded needs with 2 to 512 members, computed from bytes, latency and memory:

    python -m mlx_opt.benchmarks.scaling docs/scaling.png

Nothing here is measured. The bytes and the operations are those of `mlx_opt.sharding`; the speeds
are assumptions that the arguments change. Also prints a table.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

MEMBERS = [2, 4, 8, 16, 32, 64, 128, 256, 512]


class Assumed(NamedTuple):
    parameters: float
    """Float32 parameters, with float32 gradients."""

    bucket: float
    """Bytes that an operation exchanges at most."""

    link: float
    """Bytes a second that a member receives."""

    hop: float
    """Seconds from a member to the next in the ring."""

    memory: float
    """Bytes a second that a member's memory reads and writes."""


class Step(NamedTuple):
    """A step of AdamW by one member."""

    received: float
    """Bytes."""

    bandwidth: float
    """Seconds that these bytes need."""

    latency: float
    """Seconds that all operations wait for the members in the ring."""

    update: float
    """Seconds of the update of the member's own elements."""

    memory: float
    """Bytes a parameter at the peak: parameters, gradients, states, and three buckets."""

    @property
    def seconds(self) -> float:
        return self.bandwidth + self.latency + self.update


def sharded(members: int, given: Assumed, scatters: bool = True) -> Step:
    """A step of Sharded, if nothing overlaps."""
    total = 4 * given.parameters
    passes = 2 if scatters else 3  # an all_sum receives each byte twice
    received = passes * total * (members - 1) / members
    rounds = -(-total // given.bucket)
    latency = passes * rounds * (members - 1) * given.hop
    update = 28 * given.parameters / members / given.memory
    memory = 8 + 8 / members + 3 * given.bucket / given.parameters
    return Step(received, received / given.link, latency, update, memory)


def replicated(members: int, given: Assumed) -> Step:
    """A step of AdamW by each member after `average_gradients`, in buckets of the same size."""
    # The averages stand beside the gradients, which the program holds.
    update = 28 * given.parameters / given.memory
    return sharded(members, given)._replace(update=update, memory=20.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", type=Path, metavar="PNG")
    parser.add_argument("--parameters", type=float, default=1.3e9)
    parser.add_argument("--bucket", type=float, default=32 * 2**20, help="bytes")
    parser.add_argument("--link", type=float, default=50e9, help="bytes a second")
    parser.add_argument("--hop", type=float, default=5e-6, help="seconds")
    parser.add_argument("--memory", type=float, default=2e12, help="bytes a second")
    options = vars(parser.parse_args())
    picture = options.pop("picture")
    given = Assumed(**options)
    print(table(given))
    draw(given, picture)


def table(given: Assumed) -> str:
    """The steps in Markdown."""
    lines = [
        "| members | GB received | ms of bandwidth | ms of latency | ms of the update | "
        "bytes a parameter |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for members in MEMBERS:
        step = sharded(members, given)
        lines.append(
            f"| {members} | {step.received / 1e9:.2f} | {1e3 * step.bandwidth:.0f} | "
            f"{1e3 * step.latency:.0f} | {1e3 * step.update:.1f} | {step.memory:.2f} |"
        )
    return "\n".join(lines)


def draw(given: Assumed, picture: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    figure.suptitle(
        f"AdamW, float32, {given.parameters / 1e9:g} G parameters: computed", fontsize=13
    )
    seconds, memory = figure.subplots(1, 2)
    large = given._replace(bucket=16 * given.bucket)
    lines = {
        "average_gradients and AdamW": [replicated(n, given) for n in MEMBERS],
        "Sharded": [sharded(n, given) for n in MEMBERS],
        f"Sharded, bucket_size={large.bucket / 2**20:.0f} MiB": [
            sharded(n, large) for n in MEMBERS
        ],
        "Sharded, without sum_scatter": [sharded(n, given, scatters=False) for n in MEMBERS],
    }
    for label, steps in lines.items():
        seconds.plot(MEMBERS, [1e3 * step.seconds for step in steps], marker=".", label=label)
        if "without" not in label:
            memory.plot(MEMBERS, [step.memory for step in steps], marker=".", label=label)
    bound = [1e3 * sharded(n, given).bandwidth for n in MEMBERS]
    seconds.plot(MEMBERS, bound, color="black", linewidth=1, linestyle=":", label="bandwidth alone")
    seconds.set_title("milliseconds a step, nothing overlaps", loc="left", fontsize=11)
    memory.set_title("bytes a parameter at the peak", loc="left", fontsize=11)
    memory.set_ylim(0)
    for axes in (seconds, memory):
        axes.set(xlabel="members", xscale="log", xticks=MEMBERS, xticklabels=MEMBERS)
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    seconds.set_yscale("log")
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    main()
