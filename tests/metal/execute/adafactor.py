"""A step of Adafactor over one tensor, pass by pass, as the host runs it."""

import kernels
import numpy as np
from kernels import CHUNK, THREADS, TILE, VECTOR_WIDTH

LINES, COLUMNS = 64, 256
SCRATCH_SLOT = 2
SCRATCH = ["parameter_squares", "update_squares", "rates", "means", "totals"]
SCRATCH += ["line_sums", "column_sums", "row_means", "column_factors"]

# As tables.h has them.
COUNTS = ["rows", "columns", "matrices", "parts", "row_split", "column_split"]
COUNTS += ["transposed", "vectors", "row_vectors", "skip_nonfinite", "group"]
TENSOR = [("size", "u8"), *((name, "u8") for name in SCRATCH), *((name, "u4") for name in COUNTS)]
TENSOR += [("", "u4")]
LAYOUTS = {"of_elements": 4, "of_rows": 1, "of_columns": 1}
STRIDED = np.dtype([*TENSOR, *((name, kernels.layout(n)) for name, n in LAYOUTS.items())])
ARGUMENTS = np.dtype(TENSOR)


def parts(count, each):
    return -(-count // each)


class Plan:
    """The division of a tensor into tiles, and the offsets of its sums."""

    def __init__(
        self,
        shape,
        factored,
        transposed=False,
        strided=False,
        split=1,
        lead=0,
        skip_nonfinite=False,
        alone=False,
        group=0,
    ):
        self.factored, self.transposed, self.strided, self.alone = (
            factored,
            transposed,
            strided,
            alone,
        )
        size = int(np.prod(shape))
        rows, columns = shape[-2:] if factored else (0, 0)
        matrices = int(np.prod(shape[:-2])) if factored else 0
        lines, across = (columns, rows) if transposed else (rows, columns)
        down, self.across = parts(lines, LINES), parts(across, COLUMNS)
        self.tiles = matrices * down * self.across if factored else parts(size, CHUNK)
        self.row_groups = parts(rows, THREADS // split)
        self.mean_groups = matrices * (self.row_groups + parts(columns, THREADS // split))
        self.transposed_tiles = matrices * parts(rows, TILE) * parts(columns, TILE)
        aligned = not strided and not lead

        self.arguments = np.zeros(1, STRIDED)
        self.arguments["size"] = size
        self.arguments[COUNTS] = (
            rows, columns, matrices, self.tiles, split, split, transposed,
            aligned and across % VECTOR_WIDTH == 0,
            aligned and columns % VECTOR_WIDTH == 0, skip_nonfinite, group)  # fmt: skip
        counts = [self.tiles, self.tiles, 2, matrices, matrices * self.row_groups]
        counts += [self.across * matrices * lines, matrices * down * across]
        counts += [matrices * rows, matrices * columns]
        self.arguments[SCRATCH] = tuple(np.cumsum([0, *counts[:-1]]))
        self.scratch_floats = sum(counts)

    def set_layout(self, name, arrays):
        """The layout of operands with these NumPy arrays' strides."""
        layout = self.arguments[name]
        dims = arrays[0].ndim
        layout["dims"], layout["shape"][0, :dims] = dims, arrays[0].shape
        for k, x in enumerate(arrays):
            layout["strides"][0, k, :dims] = np.array(x.strides) // x.itemsize

    def run(self, kind, uniforms, scratch, groups, given, results, first=0):
        """A pass; `given` and `results`: pairs of a buffer and a dtype."""
        strided = self.strided and kind != "rates"
        name = [kind, *["strided"] * strided, *(kernels.SHORT[dtype] for _, dtype in given)]
        if results:
            name += ["to", *(kernels.SHORT[dtype] for _, dtype in results)]
        arguments = self.arguments.view(np.uint8)
        if not strided:
            arguments = arguments[: ARGUMENTS.itemsize].copy()
        buffers = [uniforms, arguments, scratch, *(x for x, _ in [*given, *results])]
        kernels.run("Adafactor", "_".join(name), dict(enumerate(buffers)), groups, first=first)


def order_of(k, dims):
    """An order of an operand's dimensions that differs from its neighbours'."""
    return tuple(np.roll(np.arange(dims), k))


class Tensor:
    """Operands by name (w, v or row and column, m, g), and their results."""

    def __init__(self, values, results, **options):
        self.values = values
        w = values["w"]
        self.plan = Plan(w.shape, "row" in values, **options)
        lead = options.get("lead", 0)
        bits = {name: kernels.stored(x, lead) for name, x in values.items()}
        shaped = {name: x.reshape(values[name].shape) for name, x in bits.items()}
        if self.plan.transposed:
            shaped["g"] = np.array(shaped["g"].swapaxes(-1, -2), order="C").swapaxes(-1, -2)
        if self.plan.strided:
            self.scatter(shaped)
        self.buffers = {
            name: (x.base if x.base is not None and not lead else x) for name, x in shaped.items()
        }
        self.out = {name: kernels.empty(values[name].size, d) for name, d in results.items()}
        self.results = results

    def scatter(self, shaped):
        """Puts each operand's dimensions in an order of its own."""
        for k, (name, x) in enumerate(shaped.items()):
            order = order_of(k, x.ndim)
            shaped[name] = np.array(x.transpose(order), order="C").transpose(np.argsort(order))
        names = ["g", "w", *(name for name in ("v", "m") if name in shaped)]
        self.plan.set_layout("of_elements", [shaped[name] for name in names])
        if self.plan.factored:
            self.plan.set_layout("of_rows", [shaped["row"]])
            self.plan.set_layout("of_columns", [shaped["column"]])

    def given(self, *names):
        return [(self.buffers[name], self.values[name].dtype) for name in names]

    def to(self, *names):
        return [(self.out[name], self.results[name]) for name in names]

    def step(self, uniforms):
        plan = self.plan
        scratch = np.full(plan.scratch_floats, np.nan, np.float32)
        moment = ["m"] if "m" in self.values else []

        def run(kind, groups, given=(), to=()):
            plan.run(kind, uniforms, scratch, groups, self.given(*given), self.to(*to))

        if plan.alone:
            run("element_step", 1, ["g", "w", "v", *moment], ["w", "v", *moment])
            return
        if plan.factored:
            run("squares", plan.tiles, ["g", "w"])
            run("means", plan.mean_groups, ["row", "column"], ["row", "column"])
            run("update_squares", plan.tiles, ["g"])
        else:
            run("element_squares", plan.tiles, ["g", "w", "v"])
        run("rates", 1)
        if plan.transposed:
            run("transposed_update", plan.transposed_tiles, ["g", "w", *moment], ["w", *moment])
        elif plan.factored:
            run("update", plan.tiles, ["g", "w", *moment], ["w", *moment])
        else:
            run("element_update", plan.tiles, ["g", "w", "v", *moment], ["w", "v", *moment])

    def result(self, name):
        x = kernels.loaded(self.out[name], self.results[name])
        return x.reshape(self.values[name].shape)
