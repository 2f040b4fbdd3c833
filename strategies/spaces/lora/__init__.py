"""Common parts of the spaces of low-rank adapters: algebra of factors, versions of base weights, adapters on a device.

An adapted layer with weight W (d, k) trains A (r, k) and B (d, r); its update of the weight is the product s B A.
A device's model is W + s B A, s being alpha, alpha / r or alpha / sqrt(r).

    factors     Pair(left (d, r), right (r, k)) stands for left @ right. stack(pairs, coefficients) -> Pair;
                gram(pairs) -> (n, n) float64 through r x r matrices; compress(pair, energy=, rank=) -> (Pair, lost);
                added(weight, pair) -> weight + left @ right
    layers      adaptable(module, targets, exclude) -> {module name: Shape(d, k, transposed)}; a target that matches
                nothing is a ValueError naming the nearest modules
    names       prefixes of leaf names
    ledger      versions of the base weights on the server, and the difference to send to a device with an older one
    host        LoraHost: the adapters of one module on a device (peft), one panel of flat buffers per rank
    base        AbstractLora, the hyper-parameters and the common methods
    products    AbstractProducts, updates that are products: compared and summed as the matrices they represent, of any
                ranks, no coordinates
    pruning     HetLoRA's rank pruning: rows with a penalty, removed once their norm falls
    averaged    AbstractAveraged, updates that are increments of padded factors: plain vectors
    fresh       adapters that are initialised in every job
    sampling    a pool of more rows than are sent, with the most important ones selected during training
    warm        adapters that continue between jobs: factors truncated to a client's rank and back
    truncating  adapters that start from the best approximation of a product by a client's rank

Names on the wire: an update has "<module>.lora_A" and "<module>.lora_B" for every adapted layer, in the module's
order, then "whole/<parameter>". A state has "adapted/<parameter>", "frozen/<parameter>" and "whole/<parameter>" for
all parameters and buffers of the model. Bytes of an update: sum over layers of min(r, d, k) * (d + k) numbers.

Versions: a job has the version that its client is known to have (`Job.held`), a client stores its base weights between
jobs, and every payload has the hash of the weights from which training must start. A client therefore gets only what it
lacks: one that missed versions gets their steps, and one that failed or came back gets all weights. A client whose
weights differ from the server's refuses the job.
"""
