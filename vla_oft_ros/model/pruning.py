"""SpecPrune's arithmetic: pure functions on scores and indices; nothing is stored here.

`pruner` calls these between the layers of the LLM. No function makes an attention matrix of the
whole sequence, and apart from `indices_of` none has a result whose shape depends on the data, so
all of them fit into a CUDA graph. Source: SpecPrune-VLA (arXiv 2509.05614); the released code is
no reference, it differs from the paper.

Letters: h heads · n visual tokens still present · m instruction tokens · d head dim · N cameras ·
P patches per camera. A *patch index* is camera · P + patch in the original layout, always.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from vla_oft_ros.types import KeptBy

_ROW_BLOCK = 64
"""Query rows whose logits are held at once where the attention kernel gives no normaliser."""


def row_logsumexp(queries: Tensor, keys: Tensor, block: int = _ROW_BLOCK) -> Tensor:
    """Normaliser of the softmax of some query rows, where the attention kernel did not return it.

    Args:
        queries: (h, n, d) rotated queries.
        keys: (h, S, d) rotated keys of the whole sequence.
        block: Rows worked on at once; memory is h · block · S.

    Returns:
        (h, n) log Σ_j exp(q·k_j / √d), float32 or wider.
    """
    parts = [_logits(rows, keys).logsumexp(dim=-1) for rows in torch.split(queries, block, dim=1)]
    return torch.cat(parts, dim=1)


def text_attention(queries: Tensor, keys: Tensor, logsumexp: Tensor) -> Tensor:
    """How much each visual token attends to the instruction, per head (SpecPrune, Eq. 2).

    Exact without an attention matrix: A(i, j) = exp(q_i·k_j / √d - LSE_i), where the normaliser
    runs over all keys and comes from the attention kernel.

    Args:
        queries: (h, n, d) rotated queries of the visual tokens.
        keys: (h, m, d) rotated keys of the instruction tokens.
        logsumexp: (h, n) normalisers of these queries over *all* keys.

    Returns:
        (h, n) mean over the m instruction tokens, 0 … 1; its mean over heads is the Score.
    """
    log_share = torch.baddbmm(
        -logsumexp[..., None],
        _wide(queries),
        _wide(keys).transpose(-1, -2),
        alpha=queries.shape[-1] ** -0.5,
    )  # (h, n, m)
    return log_share.exp().mean(dim=-1)  # (h, n)


def attention_entropy(queries: Tensor, keys: Tensor) -> Tensor:
    """Mean entropy of the attention from instruction to image (SpecPrune, Eq. 7).

    Args:
        queries: (h, m, d) rotated queries of the instruction tokens.
        keys: (h, n, d) rotated keys of the visual tokens.

    Returns:
        () in nats, 0 … log n.

    Note:
        Entropy needs a distribution, so attention is normalised over the visual keys alone.
    """
    logits = _logits(queries, keys)
    log_share = logits.log_softmax(dim=-1)  # (h, m, n)
    return -(log_share.exp() * log_share).sum(dim=-1).mean()


def patch_similarity(images: Tensor, references: Tensor, patch_px: int) -> Tensor:
    """Cosine similarity of the raw RGB patches of two sets of images.

    Args:
        images: (N, H, W, 3) uint8, what the network sees now.
        references: (N, H, W, 3) uint8, what it would have seen some ticks ago.
        patch_px: Side of a patch.

    Returns:
        (N, P) float32, 0 … 1; two black patches are alike, 1.
    """
    now, past = (
        rearrange(
            part.float(), "n (r p) (c q) rgb -> n (r c) (p q rgb)", p=patch_px, q=patch_px
        )  # (N, P, 3·patch²)
        for part in (images, references)
    )
    lengths = now.norm(dim=-1) * past.norm(dim=-1)  # (N, P)
    both_black = (now.amax(dim=-1) == 0) & (past.amax(dim=-1) == 0)
    cosine = (now * past).sum(dim=-1) / lengths.clamp(min=1e-6)
    return torch.where(both_black, 1.0, cosine.clamp(0.0, 1.0))


def top_mask(scores: Tensor, count: int) -> Tensor:
    """Marks the `count` highest scores of each row; entries of -inf are never marked.

    Args:
        scores: (…, P).
        count: Marks per row; more than P marks all that are finite.

    Returns:
        (…, P) bool.
    """
    best = scores.topk(min(count, scores.shape[-1]), dim=-1).indices
    marked = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
    return marked & (scores > -torch.inf)


def static_reasons(
    global_patches: Tensor,
    local_scores: Tensor,
    similarity: Tensor,
    *,
    local_count: int,
    dynamic_count: int,
    tau: float,
) -> Tensor:
    """Which patches static pruning must keep, and why: V_global ∪ V_local ∪ V_dynamic, per view.

    Args:
        global_patches: (N, P) bool, the best of the previous inference.
        local_scores: (layers, N, P) Scores of the first layers of this inference.
        similarity: (N, P) from `patch_similarity`.
        local_count: Best patches per view and layer.
        dynamic_count: At most so many changed patches per view.
        tau: Only patches less alike than this have changed.

    Returns:
        (N, P) uint8 sums of `KeptBy` flags; 0 need not be kept.
    """
    local = top_mask(local_scores, local_count).any(dim=0)
    dynamic = top_mask(-similarity, dynamic_count) & (similarity < tau)
    sets = ((KeptBy.GLOBAL, global_patches), (KeptBy.LOCAL, local), (KeptBy.DYNAMIC, dynamic))
    return torch.stack([mask.to(torch.uint8) * int(flag) for flag, mask in sets]).sum(
        dim=0, dtype=torch.uint8
    )


def ranks(scores: Tensor) -> Tensor:
    """Rank of each entry along the last dimension, 0 = highest; equal scores by index. int64."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter(-1, order, places)


def fill_to(reasons: Tensor, local_scores: Tensor, budget: int) -> Tensor:
    """Fills a fixed budget: everything required, then the next best by local score.

    "Next best" continues what makes V_local: the patch that some first layer ranks highest within
    its view comes first, so a full budget is what larger local sets would have kept.

    Args:
        reasons: (N, P) uint8 from `static_reasons`.
        local_scores: (layers, N, P).
        budget: Patches kept in all views together, at least the number required.

    Returns:
        (N, P) uint8: exactly `budget` entries differ from 0; those added carry `KeptBy.FILL`.
    """
    best_rank = ranks(local_scores).amin(dim=0)  # (N, P)
    # A mean of probabilities lies in 0 … 1: it only decides between equal ranks.
    urgency = 0.5 * local_scores.float().mean(dim=0) - best_rank  # (N, P)
    urgency = torch.where(reasons > 0, torch.inf, urgency)
    chosen = top_mask(urgency.flatten(), budget).view_as(reasons)
    filled = chosen & (reasons == 0)
    return reasons + filled.to(torch.uint8) * int(KeptBy.FILL)


def indices_of(mask: Tensor, count: int | None = None) -> Tensor:
    """Ascending indices of the marked entries of a flat mask, int64.

    Args:
        mask: (N·P,) bool.
        count: How many are marked, where that is known: the shape is fixed then and nothing waits
            for the device. None counts them.
    """
    if count is None:
        return mask.nonzero().flatten()
    return mask.float().topk(count).indices.sort().values


def rank_table(count: int, slope: float, like: Tensor) -> Tensor:
    """σ(-k·rank) / Σ σ(-k·rank) of every rank, 0 = highest (SpecPrune, Eq. 6).

    Args:
        count: n, ranks.
        slope: k.
        like: Gives device and dtype.

    Returns:
        (n,) descending, summing to 1.
    """
    weight = torch.sigmoid(torch.arange(count, device=like.device, dtype=like.dtype) * -slope)
    return weight / weight.sum()


def rank_weights(text: Tensor, table: Tensor) -> Tensor:
    """ω_rank: what each token's rank is worth, per head, averaged over heads (SpecPrune, Eq. 6).

    Args:
        text: (h, n) from `text_attention`.
        table: (n,) from `rank_table`.

    Returns:
        (n,) summing to 1.
    """
    order = text.argsort(dim=-1, descending=True, stable=True)
    per_head = torch.empty_like(text).scatter(-1, order, table.expand_as(order))
    return per_head.mean(dim=0)


def entropy_confidence(entropies: Tensor, epsilon: float) -> Tensor:
    """ω_conf = 1 / (H̄ + ε): layers that look at few patches count more (SpecPrune, Eq. 8)."""
    return 1.0 / (entropies + epsilon)


def moving_average(importance: Tensor, weights: Tensor, confidence: Tensor, beta: float) -> Tensor:
    """S ← (1 - β)·S + β·ω_rank·ω_conf (SpecPrune, Eq. 5 and 9); all (n,)."""
    return importance.lerp(weights * confidence, beta)


def keep_highest(importance: Tensor, count: int) -> Tensor:
    """Ascending indices of the `count` most important of the present tokens: (count,) int64."""
    return importance.topk(count).indices.sort().values


def all_heads(keys: Tensor, queries: Tensor) -> Tensor:
    """Repeats keys (kv heads, …) for every head of queries (h, …) that shares them: (h, …)."""
    groups = len(queries) // len(keys)
    shared: Tensor = keys if groups == 1 else keys.repeat_interleave(groups, dim=0)
    return shared


def _logits(queries: Tensor, keys: Tensor) -> Tensor:
    """q·k / √d: (h, a, d) and (h, b, d) → (h, a, b), float32 or wider."""
    scale: float = queries.shape[-1] ** -0.5
    return (_wide(queries) * scale) @ _wide(keys).transpose(-1, -2)


def _wide(tensor: Tensor) -> Tensor:
    """Casts to float32, unless the tensor is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
