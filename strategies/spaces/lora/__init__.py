"""What the spaces of low-rank adapters share: the algebra of factors, the ledger of base weights, the half on a device.

An adapted layer with weight W (d, k) trains A (r, k) and B (d, r); what counts across clients is the product s B A.
A device's model is W + s B A, s being alpha / r, or alpha / sqrt(r).

    factors   Pair(left (d, r), right (r, k)) stands for left @ right. stack(pairs, coefficients) -> Pair;
              gram(pairs) -> (n, n) float64 through r x r matrices; compress(pair, energy=, rank=) -> (Pair, lost);
              truncated(matrix, rank) -> Pair, of a dense matrix; added(weight, pair) -> weight + left @ right
    layers    adaptable(module, targets, exclude) -> {module name: Shape(d, k, transposed)}; a target that matches
              nothing is a ValueError naming the nearest modules
    ledger    the base weights of every version on the server and what a device that holds an older one is sent:
              stacked factors, compressed factors or the merged matrix, whichever has fewer bytes, layer by layer
    host      LoraHost: the adapters of one module on a device (peft), one panel of flat buffers per rank
    base      AbstractLora, the hyper-parameters: rank (the largest, and what a budget without a rank gets), alpha,
              alpha_by_rank (s = alpha at every rank, or alpha / r), rslora, targets, exclude, whole, dropout, seed

Names on the wire: an update holds "<module>.lora_A" and "<module>.lora_B" for every adapted layer, in the module's
order, then "whole/<parameter>". A state holds "adapted/<parameter>", "frozen/<parameter>" and "whole/<parameter>" for
all parameters and buffers of the model. Bytes of an update: sum over layers of min(r, d, k) * (d + k) numbers.
"""
