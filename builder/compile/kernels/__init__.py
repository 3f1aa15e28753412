"""CPU kernels of the model library, written as TIR PrimFuncs. Import the module you need.

Every factory returns a `tvm.tirx.PrimFunc` with destination-passing signature (inputs first, outputs last),
for `relax.call_tir` or a direct call of the compiled function. Names are unique per shape and ISA.

Conventions
    m, t      rows of the activation matrix: tokens of a prefill chunk or sequences of a decode batch
    rows=1    the function takes exactly one row (decode); rows=None takes any m >= 1, known at run time
    n, k      outputs and inner dimension of a linear layer; k a multiple of 32 (`UnsupportedError` otherwise)
    isa       an `isa.Isa`; `isa.ISAS["avx512vnni" | "avx2" | "neondot" | "generic"]`
    scale     dtype of the weight scales as stored: "float16", "bfloat16" or "float32"
    layout    of quantised weights as stored: "NK" or, transposed, "KN"
    weight    "q4f16" | "q4bf16" | "q4f32" | "q3f16": two arguments; "float16" | "bfloat16" | "float32": one
              dense [n, k] (`weights` describes them)
    heads     `heads.Heads(kv, query, dim)`
Activations are float32 matrices `[m, k]`, or for the fast linears *blocks*: `int32 [p, k/32, 10]`, where
p = m for rows=1 and `activation.padded_rows(m)` otherwise (`activation` describes a block).
Tensors must be aligned to 64 bytes: those allocated by TVM's runtime are, those made from numpy are not.

The menu: `factory(...)  f(inputs..., outputs...)`; shapes and limits are in each docstring
    activation.quantise(k, rows=…)                          f(x[m,k], blocks)
    activation.rms_norm_quantise(k, eps, rows=…)            f(x[m,k], gamma[k], blocks)
    activation.gated_quantise(k, gate, rows=…)              f(gate_up[m,2k], blocks)
    activation.rms_norm(k, eps, rows=…, residual=…)         f(x[m,k], gamma[k], [residual[m,k],] y[m,k])
    activation.gated(k, gate, rows=…)                       f(gate_up[m,2k], y[m,k])
    activation.soft_cap(k, cap, rows=…)                     f(x[m,k], y[m,k])
    packing.pack(n, k, isa, scale=…, layout=…)              f(q_weight, q_scale, packed, scales)
    packing.transpose(n, k, scale=…)                        f(q_weight, q_scale, words, scales), KN to NK
    packing.planes(n, k, layout=…)                          f(q_weight, q_scale, planes, scales), three bits
    packing.packed_shape(n, k, isa), packing.scales_shape(n, k, isa)
    w4a8.linear(n, k, isa, scale=…, rows=…, …)              f(packed, scales, blocks, *added, y[m,n])
    exact.linear(n, k, isa, weight=…, rows=…, …)            f(*weight, x[m,k], *added, y[m,n])
        both with bias=…, residual=…: added is [bias[n],] [residual[m,n]]
    embedding.lookup_packed(vocab, k, isa, scale=…, …)      f(packed, scales, ids[t] int32, y[t,k])
    embedding.lookup(vocab, k, isa, weight=…, …)            f(*weight, ids[t] int32, y[t,k])
        both with multiplier=…
    qkv.finish(heads, eps=…, rates=…, …)                    f(qkv, [q_gamma, k_gamma,] [positions,] out)
    rotary.split_rotary(heads, rates, gain)                 tir_split_rotary           of TVM's paged KV cache
    kv_pages.append(heads)                                  kv_cache_transpose_append  of the same
    paged_attention.ragged_prefill(heads, isa, scoring)     tir_attention_prefill_ragged_cpu
    paged_attention.paged_prefill(heads, isa, scoring)      tir_attention_prefill_cpu
    paged_attention.decode(heads, isa, scoring)             tir_attention_decode_cpu
    attention_state.merge(heads)                            tir_attention_merge_state_cpu
"""
