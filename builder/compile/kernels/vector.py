"""Vector expressions in TIR, on top of TVM's IRBuilder: the words the kernels are written in.

Float vectors have 16 lanes on every machine; LLVM splits them where registers are narrower. What differs
between machines is how many of them a tile may hold, which is the kernels' business.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.script.ir_builder.tirx import prim_func

from builder.errors import UnsupportedError

# TVM has no type information: expressions, buffers and functions are all Any to mypy.
Expr = Any
Buffer = Any
PrimFunc = Any

LANES = 16
"""Lanes of a float vector."""

BLOCK = 32
"""Columns that share a quantisation scale: MLC's group size, and the length of an int8 activation block."""

LOG2_E = 1.4426950408889634


def build(name: str, body: Callable[[], None]) -> PrimFunc:
    """The PrimFunc whose arguments and statements `body` emits. Its buffers must not alias one another."""
    # Relax refuses PrimFuncs without the s_tir mark and a root block (see `root`).
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"global_symbol": name, "tirx.noalias": True, "tirx.is_scheduled": True})
        body()
    return builder.get()


def digits(number: float) -> str:
    """A number as part of a kernel's name."""
    return f"{number:g}".replace("-", "m").replace(".", "p").replace("+", "")


def endings(**options: bool) -> str:
    """The options that a kernel was made with, as the end of its name."""
    return "".join(f"_{name}" for name, chosen in options.items() if chosen)


@contextmanager
def root() -> Iterator[None]:
    """The block that holds all statements of a kernel, after its arguments."""
    with T.sblock("root"):
        T.reads()
        T.writes()
        yield


def blocks_of(k: int) -> int:
    """How many quantisation blocks an inner dimension has.

    Raises:
        UnsupportedError: k is not a positive multiple of 32.
    """
    if k <= 0 or k % BLOCK:
        raise UnsupportedError(
            f"inner dimension {k} is not a multiple of {BLOCK}",
            hint="Only models whose hidden and intermediate sizes are multiples of 32 can be compiled.",
        )
    return k // BLOCK


def when(
    condition: Expr | None,
    then: Callable[[], None],
    otherwise: Callable[[], None] | None = None,
) -> None:
    """A branch at run time; a condition of None is known to hold and leaves no branch."""
    if condition is None:
        then()
        return
    with T.If(condition):
        with T.Then():
            then()
        if otherwise is not None:
            with T.Else():
                otherwise()


def each_token(tokens: Expr, body: Callable[[Expr], None]) -> None:
    """`body` for every token, in parallel unless there is only one: waking threads costs more than that."""

    def parallel() -> None:
        with T.parallel(0, tokens) as token:
            body(token)

    when(tokens == 1, partial(body, i32(0)), parallel)


def tensor(name: str, shape: tuple[Any, ...], dtype: str, **options: Any) -> Buffer:
    """Declare the next argument: a tensor in C order."""
    return T.match_buffer(T.arg(name, T.handle()), shape, dtype, **options)


def local(dtype: str = "float32", lanes: int = LANES) -> Buffer:
    """A vector variable; LLVM keeps it in a register as long as every index into it is constant."""
    return T.alloc_buffer((lanes,), dtype, annotations={"disable_lower_builtin": True})


def fixed(expr: Expr, dtype: str = "int32") -> Expr:
    """A scalar evaluated here, once. TVM's analysis does not look through it, unlike through `T.bind`.

    Bounds with divisions and selections in them otherwise cost the compiler seconds, and the simplifier
    carries what it knows inside a `Select` into the definitions of the variables that occur there.
    """
    variable = local(dtype, 1)
    T.buffer_store(variable, expr, [i32(0)])
    return T.bind(variable[i32(0)])


def held(expr: Expr) -> Expr:
    """`fixed` for a float vector."""
    variable = local()
    assign(variable, expr)
    return T.bind(value(variable))


def value(variable: Buffer, lanes: int = LANES) -> Expr:
    """What a vector variable holds now."""
    return variable[tirx.Ramp(i32(0), 1, lanes)]


def assign(variable: Buffer, expr: Expr, lanes: int = LANES) -> None:
    """Give a vector variable a new value."""
    T.buffer_store(variable, expr, [tirx.Ramp(i32(0), 1, lanes)])


def load(buffer: Buffer, *index: Expr, lanes: int = LANES) -> Expr:
    """`lanes` neighbouring elements from `index` on. Not evaluated yet: `T.bind` it where order matters."""
    return buffer[(*index[:-1], tirx.Ramp(index[-1], 1, lanes))]


def store(buffer: Buffer, expr: Expr, *index: Expr, lanes: int = LANES) -> None:
    """Write a vector to neighbouring elements from `index` on."""
    T.buffer_store(buffer, expr, [*index[:-1], tirx.Ramp(index[-1], 1, lanes)])


def prefetch(address: Expr) -> None:
    """Fetch the cache line at `address_of(...)` for reading. Never faults, wherever the address points."""
    # Read access, keep in all cache levels, data.
    options = i32(0), i32(3), i32(1)
    T.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch.p0", address, *options))


def i32(number: int) -> Expr:
    """An int32 constant."""
    return tirx.const(number, "int32")


def f32(number: float) -> Expr:
    """A float32 constant."""
    return tirx.const(number, "float32")


def splat(scalar: Expr | float, lanes: int = LANES) -> Expr:
    """A vector of equal lanes; a Python number becomes float32."""
    return tirx.Broadcast(f32(scalar) if isinstance(scalar, int | float) else scalar, lanes)


def zero(lanes: int = LANES) -> Expr:
    """A float32 vector of zeros."""
    return splat(0.0, lanes)


def intrinsic(dtype: str, name: str, *operands: Expr) -> Expr:
    """A side-effect-free LLVM intrinsic."""
    return tirx.call_llvm_pure_intrin(dtype, name, *operands)


def fma(a: Expr, b: Expr, c: Expr, lanes: int = LANES) -> Expr:
    """a * b + c in float32; fused where that is an instruction (`llvm.fma` would call libm elsewhere)."""
    return intrinsic(f"float32x{lanes}" if lanes > 1 else "float32", "llvm.fmuladd", a, b, c)


def fabs(a: Expr) -> Expr:
    """Absolute value of a float vector."""
    return intrinsic(f"float32x{LANES}", "llvm.fabs", a)


def largest(a: Expr) -> Expr:
    """The greatest lane of a float vector, by halving: LLVM's own goes lane by lane to respect NaN."""
    return _reduced(a, tirx.Max)


def total(a: Expr) -> Expr:
    """The sum of a float vector's lanes, by halving: LLVM's own reduction adds lane after lane."""
    return _reduced(a, lambda low, high: low + high)


def _reduced(a: Expr, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    lanes = LANES
    while lanes > 1:
        lanes //= 2
        a = T.bind(a)
        low, high = list(range(lanes)), list(range(lanes, 2 * lanes))
        a = combine(tirx.Shuffle([a], low), tirx.Shuffle([a], high))
    return T.bind(a)


def lane(a: Expr, index: int) -> Expr:
    """One lane of a vector, as a scalar."""
    return tirx.Shuffle([a], [index])


def exp2(a: Expr) -> Expr:
    """2**a lane by lane, a clamped to [-126, 126]; relative error below 3e-7 (Taylor on [-1/2, 1/2])."""
    a = T.bind(tirx.Max(tirx.Min(a, splat(126.0)), splat(-126.0)))
    whole, series, rest = _exp2_parts(a)
    power = T.bind(fma(series, rest, splat(1.0)))
    return T.bind(tirx.reinterpret(f"float32x{LANES}", tirx.reinterpret(f"int32x{LANES}", power) + whole))


def tanh(a: Expr) -> Expr:
    """Hyperbolic tangent lane by lane; relative error below 5e-7, so that small values stay what they are."""
    # From e**2a - 1, which the parts of 2**x give without cancellation; beyond 10 the result rounds to 1.
    a = T.bind(tirx.Max(tirx.Min(a, splat(10.0)), splat(-10.0)))
    whole, series, rest = _exp2_parts(T.bind(a * splat(2 * LOG2_E)))
    power = T.bind(tirx.reinterpret(f"float32x{LANES}", whole + splat(i32(0x3F800000))))
    less = T.bind(fma(power, series * rest, power - splat(1.0)))
    return T.bind(less / (less + splat(2.0)))


def _exp2_parts(a: Expr) -> tuple[Expr, Expr, Expr]:
    """With n the integer next to a: n as what it adds to a float's exponent bits, a series, and a - n.

    2**(a - n) is 1 + series * (a - n).
    """
    # Adding 1.5 * 2**23 leaves the rounded value in the low bits: needs neither `rint` nor a cast.
    # The sum is written as an intrinsic, or TVM would simplify (a + c) - c to a.
    magic = T.bind(fma(a, splat(1.0), splat(12582912.0)))
    fraction = T.bind(a - (magic - splat(12582912.0)))
    power = splat(1.5403530393381608e-4)
    for coefficient in (
        1.3333558146428443e-3,
        9.618129107628477e-3,
        5.550410866482158e-2,
        0.2402265069591007,
        0.6931471805599453,
    ):
        power = T.bind(fma(power, fraction, splat(coefficient)))
    return tirx.reinterpret(f"int32x{LANES}", magic) << splat(i32(23)), power, fraction


def half_to_float(a: Expr, native: bool, lanes: int = LANES) -> Expr:
    """float16 to float32, exact for finite values. `native`: the machine has an instruction for it.

    Elsewhere LLVM would call a routine of the compiler's runtime, which a library linked without one lacks.
    """
    wide = f"float32x{lanes}"
    if native:
        return tirx.Cast(wide, a)
    bits = T.bind(tirx.Cast(f"uint32x{lanes}", tirx.reinterpret(f"uint16x{lanes}", a)))
    magnitude = (bits & splat(tirx.const(0x7FFF, "uint32"), lanes)) << splat(tirx.const(13, "uint32"), lanes)
    sign = (bits & splat(tirx.const(0x8000, "uint32"), lanes)) << splat(tirx.const(16, "uint32"), lanes)
    # The exponent bias differs by 112; the multiplication also normalises float16's subnormals.
    scaled = T.bind(tirx.reinterpret(wide, magnitude) * splat(2.0**112, lanes))
    return tirx.reinterpret(wide, tirx.reinterpret(f"uint32x{lanes}", scaled) | sign)


def half_to_float_scalar(a: Expr, native: bool) -> Expr:
    """`half_to_float` of one value."""
    if native:
        return tirx.Cast("float32", a)
    pair = half_to_float(tirx.Broadcast(a, 2), native, lanes=2)
    return lane(pair, 0)


def round_to_half(a: Expr, native: bool, lanes: int = LANES) -> Expr:
    """float32 rounded to the nearest float16 (ties to even), still as float32. |a| must be below 65520."""
    wide = f"float32x{lanes}"
    if native:
        return tirx.Cast(wide, tirx.Cast(f"float16x{lanes}", a))
    a = T.bind(a)
    bits = T.bind(tirx.reinterpret(f"uint32x{lanes}", a))
    sign = bits & splat(tirx.const(0x80000000, "uint32"), lanes)
    magnitude = T.bind(bits & splat(tirx.const(0x7FFFFFFF, "uint32"), lanes))
    odd = (magnitude >> splat(tirx.const(13, "uint32"), lanes)) & splat(tirx.const(1, "uint32"), lanes)
    normal = (magnitude + splat(tirx.const(0xFFF, "uint32"), lanes) + odd) & splat(
        tirx.const(0xFFFFE000, "uint32"), lanes
    )
    # Below float16's smallest normal the spacing is 2**-24, which is float32's spacing in [0.5, 1).
    small = fma(tirx.reinterpret(wide, magnitude), splat(1.0, lanes), splat(0.5, lanes), lanes) - splat(
        0.5, lanes
    )
    rounded = tirx.Select(
        magnitude < splat(tirx.const(0x38800000, "uint32"), lanes),
        tirx.reinterpret(f"uint32x{lanes}", T.bind(small)),
        normal,
    )
    return tirx.reinterpret(wide, rounded | sign)


def cos_sin(angle: Expr, lanes: int = LANES) -> tuple[Expr, Expr]:
    """Cosine and sine of a float32 vector, |angle| below 2**20; absolute error below 2e-7."""
    # In float64, so that angles of a long context lose nothing in the reduction to [-pi/4, pi/4].
    wide, long = f"float64x{lanes}", f"int64x{lanes}"

    def f64(number: float) -> Expr:
        return tirx.Broadcast(tirx.const(number, "float64"), lanes)

    angle = T.bind(tirx.Cast(wide, angle))
    # Adding 1.5 * 2**52 leaves the number of quarter turns in the low bits.
    magic = T.bind(intrinsic(wide, "llvm.fmuladd", angle, f64(2 / math.pi), f64(6755399441055744.0)))
    quarters = tirx.Cast(f"int32x{lanes}", tirx.reinterpret(long, magic))
    quarters = T.bind(quarters & splat(i32(3), lanes))
    turned = intrinsic(wide, "llvm.fmuladd", f64(-math.pi / 2), magic - f64(6755399441055744.0), angle)
    rest = T.bind(tirx.Cast(f"float32x{lanes}", turned))
    square = T.bind(rest * rest)
    # Taylor: the first terms left out are below 2e-9 at pi/4.
    cos = T.bind(_series(square, [1.0, -1 / 2, 1 / 24, -1 / 720, 1 / 40320, -1 / 3628800], lanes))
    sin = T.bind(rest * _series(square, [1.0, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880], lanes))

    def odd() -> Expr:
        return quarters & splat(i32(1), lanes) > splat(i32(0), lanes)

    return (
        _negated(tirx.Select(odd(), sin, cos), quarters + splat(i32(1), lanes), lanes),
        _negated(tirx.Select(odd(), cos, sin), quarters, lanes),
    )


def _negated(a: Expr, quarters: Expr, lanes: int) -> Expr:
    """a, negated where bit 1 of `quarters` is set."""
    sign = (quarters & splat(i32(2), lanes)) << splat(i32(30), lanes)
    return T.bind(tirx.reinterpret(f"float32x{lanes}", tirx.reinterpret(f"int32x{lanes}", T.bind(a)) ^ sign))


def _series(square: Expr, coefficients: list[float], lanes: int) -> Expr:
    result = splat(coefficients[-1], lanes)
    for coefficient in reversed(coefficients[:-1]):
        result = T.bind(fma(result, square, splat(coefficient, lanes), lanes))
    return result
