"""CPU kernels of the model library, written as TIR PrimFuncs. Import the module you need: this one stays empty.

Every factory returns a `tvm.tirx.PrimFunc` with destination-passing signature (inputs first, outputs last),
for `relax.call_tir` or a direct call of the compiled function. Names are unique per shape and ISA.

Conventions
    m, t      rows of the activation matrix: tokens of a prefill chunk or sequences of a decode batch
    rows=1    the function takes exactly one row (decode); rows=None takes any m >= 1, known at run time
    n, k      output and inner dimension of a linear layer; k a multiple of 32 (`UnsupportedError` otherwise)
    isa       an `isa.Isa`; `isa.ISAS["avx512vnni" | "avx2" | "neondot" | "generic"]`
    scale     dtype of the weight scales as stored: "float16" (q4f16_1) or "float32" (q4f32_1)
Activations are float32 matrices `[m, k]`, or for the fast linears *blocks*: `int32 [p, k/32, 10]`, where
p = m for rows=1 and `activation.padded_rows(m)` otherwise (`activation` describes a block).
Tensors must be aligned to 64 bytes: those allocated by TVM's runtime are, those made from numpy are not.

The menu: `factory(...)  f(inputs..., outputs...)`; shapes and limits are in each docstring
    activation.quantise(k, rows=…)                          f(x[m,k], blocks)
    activation.rms_norm_quantise(k, eps, rows=…)            f(x[m,k], gamma[k], blocks)
    activation.silu_mul_quantise(k, rows=…)                 f(gate_up[m,2k], blocks)
    activation.rms_norm(k, eps, rows=…)                     f(x[m,k], gamma[k], y[m,k])
    activation.silu_mul(k, rows=…)                          f(gate_up[m,2k], y[m,k])
    w4a8.linear(n, k, isa, scale=…, rows=…, residual=…)     f(packed, scales, blocks, [residual[m,n],] y[m,n])
    packing.pack(n, k, isa, scale=…)                        f(q_weight[n,k/8], q_scale[n,k/32], packed, scales)
    packing.packed_shape(n, k, isa), packing.scales_shape(n, k, isa)
    exact.linear(n, k, isa, weight=…, rows=…, residual=…)   f(*weight, x[m,k], [residual[m,n],] y[m,n])
        weight = "q4f16" | "q4f32": q_weight, q_scale as stored; "float16" | "float32": one dense [n,k]
    embedding.lookup_packed(vocab, k, isa, scale=…)         f(packed, scales, ids[t] int32, y[t,k])
    embedding.lookup(vocab, k, isa, weight=…)               f(*weight, ids[t] int32, y[t,k])
    attention_decode.paged_decode(kv_heads, heads, head_dim)      |
    attention_prefill.ragged_prefill(kv_heads, heads, head_dim)   | signatures of TVM's paged KV cache on a
    attention_prefill.paged_prefill(kv_heads, heads, head_dim)    | CPU, vm.builtin.paged_attention_kv_cache_create
    attention_state.merge(heads, head_dim)                        |
    kv_pages.append(kv_heads, head_dim)                           |
    rotary.split_rotary(kv_heads, heads, head_dim, frequencies)   |
"""
