"""Converts Metal programs to C++: as_cpp.py FILE.metal ... prints it, for clang with metal_stdlib.

What the programs have before their kernels is printed once: it may differ only in how it goes on.
For each kernel there is a function that runs threadgroups of it on the CPU:

    extern "C" int run_NAME(void* const* buffers, unsigned first, unsigned end, unsigned threads)
"""

import re
import sys
from pathlib import Path

BUILT_IN = {
    "threadgroup_position_in_grid": "msl::position().group",
    "thread_index_in_threadgroup": "msl::position().index",
    "thread_position_in_grid": "msl::position().group * msl::position().threads"
    " + msl::position().index",
}
BEGINNING = re.compile(r"\[\[kernel\b[^\]]*\]\] void (\w+)\((.*?)\) \{", re.DOTALL)


def argument(parameter):
    """The argument for a parameter of the kernel."""
    match = re.fullmatch(r"\s*(.*?)\s*(\w+) \[\[(\w+)(?:\((\d+)\))?\]\]", parameter, re.DOTALL)
    if not match:
        raise ValueError(f"a parameter without an attribute: {parameter}")
    kind, _, attribute, slot = match.groups()
    if attribute in BUILT_IN:
        return BUILT_IN[attribute]
    if attribute != "buffer" or not 0 <= int(slot) <= 30:
        raise ValueError(f"Metal has no such attribute or slot: {parameter}")
    if not re.match(r"(const )?(device|constant)\b", kind):
        raise ValueError(f"no address space: {parameter}")
    if kind.endswith("&"):
        return f"*static_cast<{kind[:-1]}*>(buffers[{slot}])"
    return f"static_cast<{kind}>(buffers[{slot}])"


def launcher(name, parameters):
    arguments = [argument(parameter) for parameter in parameters.split(",\n")]
    slots = re.findall(r"\[\[buffer\((\d+)\)\]\]", parameters)
    if len(slots) != len(set(slots)):
        raise ValueError(f"{name} has two buffers of one slot")
    call = f"{name}({', '.join(arguments)})"
    return (
        f'extern "C" int run_{name}(\n'
        "    void* const* buffers, unsigned first, unsigned end, unsigned threads) {\n"
        f"  const auto kernel = [](void* const* buffers) {{ {call}; }};\n"
        "  return msl::dispatch(kernel, buffers, first, end, threads);\n}\n"
    )


def as_cpp(text):
    """A threadgroup's array is one at a time: threadgroups run one after another."""
    text = re.sub(r"^(\s*)threadgroup (\w+ \w+\[)", r"\1static \2", text, flags=re.MULTILINE)
    return re.sub(r"\[\[[^\]]*\]\]", "", text)


def merged(beginnings):
    """A text with all of them, of which each but the shortest continues another."""
    shortest, *others = sorted(beginnings, key=len)
    text, known = shortest, [shortest]
    for other in others:
        continued = [each for each in known if other.startswith(each)]
        if not continued:
            raise ValueError("the programs differ in more than their kernels and what those need")
        more = other[len(max(continued, key=len)) :]
        text += "" if more in text else more
        known.append(other)
    return text


def translate(programs):
    starts = [BEGINNING.search(program).start() for program in programs]
    pairs = zip(programs, starts, strict=True)
    beginnings = {program[:start].rstrip() for program, start in pairs}
    text = as_cpp(merged(beginnings) + "\n")
    for program, start in zip(programs, starts, strict=True):
        text += as_cpp(program[start:])
        text += "".join(launcher(*match) for match in BEGINNING.findall(program))
    return text


if __name__ == "__main__":
    print(translate([Path(name).read_text() for name in sys.argv[1:]]))
