"""Type-checks Metal programs as C++ for OpenCL: check.py FILE.metal ... exits 1 if one is refused.

There the address spaces are qualifiers of types, as in Metal, and double, unknown functions, static
locals, virtual functions, function pointers and exceptions are errors. What Metal refuses besides
and clang does not is looked for in the text.

Clang reads each program twice. With the generic address space `this` may be anywhere; without it,
it is in the thread's memory, as in Metal, but clang then fails to find constructors that classes
have without being written. So of the second reading only what it says of `this` counts.
"""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent

# A program has the whole vocabulary of rules and drivers, of which its kernel may use a part.
CLANG = """clang-19 -x clcpp -cl-std=clc++2021 -target x86_64-unknown-linux-gnu -cl-no-stdinc
    -cl-single-precision-constant -Wall -Wextra -Werror -Wno-unknown-attributes
    -Wno-unused-parameter -Wno-unused-function -Wno-unneeded-internal-declaration
    -Wno-unknown-pragmas -fsyntax-only -ferror-limit=0
    -fno-caret-diagnostics""".split()
EXTENSIONS = "-cl-ext=-all,+cl_khr_fp16"
GENERIC = EXTENSIONS + ",+__opencl_c_generic_address_space"

REFUSED = {
    r"\bgoto\b": "goto",
    r"(?<![\w\])])\s\[[&=\w]*\]\s*\(": "a lambda",
    r"\bif constexpr\b": "if constexpr, of C++17",
    r"\bauto\s*&?\s*\[": "a structured binding, of C++17",
    r"\(\s*\.\.\.|\.\.\.\s*\)(?!\s*[,;{}])": "a fold expression, of C++17",
    r"\bbfloat\b": "bfloat: clang converts a float to it without being asked",
    r"[^\x00-\x7f]": "a character outside ASCII, which MLX does not hand on",
}


def plain(text):
    """The text without comments and without the three dots of macros that take anything."""
    text = re.sub(r"//[^\n]*", "", text)
    return re.sub(r"^(#define \w+)\(\.\.\.\)", r"\1", text, flags=re.MULTILINE)


def as_opencl(text):
    """The text with the two spots where Metal's grammar is wider than clang's made narrower."""
    text = re.sub(r"\[\[kernel\b[^\]]*\]\]", "", text)
    return re.sub(
        r"^(\s*)threadgroup (\w+) (\w+)\[([^\n]*)\];",
        r"\1threadgroup \2* const \3 = (threadgroup \2*)0;",
        text,
        flags=re.MULTILINE,
    )


def functions_that_call_themselves(text):
    """Names of functions whose own body mentions a call of theirs without a qualifier."""
    for match in re.finditer(r"\binline\b[^;{}()]*?\b(\w+)\([^{};]*\)\s*\{", text):
        depth, end = 1, match.end()
        while depth and end < len(text):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if re.search(rf"(?<![\w:.>]){match[1]}\(", text[match.end() : end]):
            yield match[1]


SPACES = r"\b(device|constant|thread|threadgroup)\b"
NUMBERS = r"\b(float|half|bool|void|u?(char|short|int|long)|(float|half|ushort)4)"


def pointers_to_nowhere(text):
    """Pointers and references to numbers that name no address space."""
    for match in re.finditer(NUMBERS + r"\s*(const\s*)?[*&](?!&)", text):
        start = max(text.rfind(mark, 0, match.start()) for mark in ";,({<}")
        if not re.search(SPACES, text[start : match.end()]):
            yield text[start + 1 : match.end()].strip()


OBJECT_ELSEWHERE = "cannot initialize object parameter"


def errors(text, extensions):
    """What clang objects to, a line each."""
    command = [*CLANG, "-Xclang", extensions, f"-I{HERE}", "-"]
    result = subprocess.run(command, input=as_opencl(text), capture_output=True, text=True)
    if result.returncode < 0 or (result.returncode and "error:" not in result.stderr):
        raise RuntimeError(result.stderr)
    return [line for line in result.stderr.splitlines() if "error:" in line]


def merged(programs):
    """The programs, those that differ only in their kernels as one."""
    kernels = {}
    for program in programs:
        beginning, kernel, rest = program.partition("[[kernel")
        kernels[beginning] = kernels.get(beginning, "") + kernel + rest
    return [beginning + rest for beginning, rest in kernels.items()]


def problems(text):
    """Why the program would be refused, a line each."""
    own = plain(text)
    found = [what for pattern, what in REFUSED.items() if re.search(pattern, own)]
    found += [f"recursion in {name}" for name in functions_that_call_themselves(own)]
    found += [f"a pointer without an address space: {what}" for what in pointers_to_nowhere(own)]
    found += errors(text, GENERIC)
    strict = errors(text, EXTENSIONS)
    return found + [line for line in strict if OBJECT_ELSEWHERE in line]


def main(names):
    texts = merged(Path(name).read_text() for name in names)
    with ThreadPoolExecutor() as pool:
        found = [problem for each in pool.map(problems, texts) for problem in each]
    print(*found, sep="\n", end="\n" if found else "")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
