"""What the spaces of low-rank adapters share: the algebra of factors, the ledger of base weights, the half on a device.

An adapted layer with weight W (d, k) trains A (r, k) and B (d, r); what counts across clients is the product s B A.
A device's model is W + s B A, s being alpha, alpha / r or alpha / sqrt(r).

    factors     Pair(left (d, r), right (r, k)) stands for left @ right. stack(pairs, coefficients) -> Pair;
                gram(pairs) -> (n, n) float64 through r x r matrices; compress(pair, energy=, rank=) -> (Pair, lost);
                added(weight, pair) -> weight + left @ right
    layers      adaptable(module, targets, exclude) -> {module name: Shape(d, k, transposed)}; a target that matches
                nothing is a ValueError naming the nearest modules
    names       what a leaf is, by its name
    ledger      the base weights of every version on the server, and what a device that holds an older one is sent
    host        LoraHost: the adapters of one module on a device (peft), one panel of flat buffers per rank
    base        AbstractLora, the hyper-parameters and what all spaces do alike; AbstractProducts, updates that are
                products: measured and summed as the matrices they stand for, of any ranks, no coordinates
    pruning     rows that a client presses down and gives up once they shrink
    averaged    AbstractAveraged, updates that are increments of padded factors: plain vectors
    fresh       adapters that begin anew with every job
    sampling    more rows of an adapter than are sent, the best of them chosen while they are trained
    warm        adapters that live on: factors cut to a client's rank and back
    truncating  adapters that begin with the best part of a product a rank can hold

Names on the wire: an update holds "<module>.lora_A" and "<module>.lora_B" for every adapted layer, in the module's
order, then "whole/<parameter>". A state holds "adapted/<parameter>", "frozen/<parameter>" and "whole/<parameter>" for
all parameters and buffers of the model. Bytes of an update: sum over layers of min(r, d, k) * (d + k) numbers.

Who holds what: a job says which version its client is known to hold (`Job.held`), a client keeps its base weights
between jobs, and every payload names the hash of the weights training must start from. So a client gets only what it
lacks; one that missed versions gets their steps, one that failed or came back gets everything, and one whose weights
are not the server's refuses the job.
"""
