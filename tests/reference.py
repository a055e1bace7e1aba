"""The whole method once more, plainly and in float64: what the tests compare the fast code with.

Nothing here is shared with the package. Networks are functions of a flat state dict in the published checkpoint
layout (`layout`), written with elementary tensor operations; losses, schedules, the optimiser, the metrics and the
two training stages are written out from their formulas. All sizes are read from the tensors, so small variants work.
Wherever the program draws at random, the draw is an argument.

Letters in shapes: B images of a batch, N prompts, U distinct identities of a batch, C identities, T image tokens
(class token first), L text positions, W width of a transformer, D width of the common image-text space.
"""

import math

import numpy as np
import torch
from torch.nn.functional import avg_pool2d, conv2d

LEARNT = 4  # learned prompt vectors per identity
PREFIX = 5  # fixed tokens before them: start of text, "A photo of a"
END = 11  # position of the end-of-text token in "A photo of a X X X X person."
EPS = 1e-5  # of layer and batch normalisation
MOMENTUM = 0.1  # of batch normalisation's running statistics
RUNNING = ("running_mean", "running_var", "num_batches_tracked")


# ---------------------------------------------------------------------------------------------------------------
# The checkpoint: names, shapes, random contents
# ---------------------------------------------------------------------------------------------------------------


def grid(image_size, patch=16, stride=16):
    """(rows, columns) of patches of `patch` pixels, `stride` pixels apart, in an image (height, width)."""
    return tuple((pixels - patch) // stride + 1 for pixels in image_size)


def layout(tower="vit", *, classes, image_size, stride=16, rows=None, ssl=None, prompts=True, **sizes):
    """Ordered {name: shape} of the published checkpoint.

    rows: rows of the side-information table, None without one. ssl: None, "SIMCLR" or "SIMSIAM".
    prompts=False: the one-stage baseline, without prompts and text encoder.
    sizes (defaults: the full networks): width, embed, text_width, text_layers, context, ssl_hidden, ssl_out; for
    the ViT layers and patch; for the RN50 blocks, and width is that of the stem's output.
    """
    vit_tower = {"vit": True, "rn50": False}[tower]
    known = {"width", "embed", "text_width", "text_layers", "context", "ssl_hidden", "ssl_out"}
    known |= {"layers", "patch"} if vit_tower else {"blocks"}
    if set(sizes) - known:
        raise TypeError(f"unknown sizes {sorted(set(sizes) - known)}")
    width = sizes.get("width", 768 if vit_tower else 64)
    embed = sizes.get("embed", 512 if vit_tower else 1024)
    main = width if vit_tower else 32 * width
    shapes = {}
    if rows is not None:
        shapes["cv_embed"] = (rows, main)
    shapes["classifier.weight"] = (classes, main)
    shapes["classifier_proj.weight"] = (classes, embed)
    shapes |= _norm_shapes("bottleneck", main) | _norm_shapes("bottleneck_proj", embed)
    if vit_tower:
        shapes |= _vit_shapes(width, sizes.get("layers", 12), sizes.get("patch", 16), embed, image_size, stride)
    else:
        shapes |= _rn50_shapes(width, sizes.get("blocks", (3, 4, 6, 3)), embed, image_size)
    if ssl == "SIMCLR":
        hidden, out = sizes.get("ssl_hidden", 4096), sizes.get("ssl_out", 256)
        shapes |= _simclr_shapes("image_mlp", main, hidden, out)
        if prompts:
            shapes |= _simclr_shapes("text_mlp", embed, hidden, out)
    elif ssl == "SIMSIAM":
        hidden = sizes.get("ssl_hidden", 512)
        shapes |= _linear_shapes("image_mlp.linear1", main, hidden) | _norm_shapes("image_mlp.bn1", hidden)
        shapes |= _linear_shapes("image_mlp.layer2", hidden, main)
    elif ssl is not None:
        raise ValueError(ssl)
    if prompts:
        text_width, context = sizes.get("text_width", 512), sizes.get("context", 77)
        shapes["prompt_learner.cls_ctx"] = (classes, LEARNT, text_width)
        shapes["prompt_learner.token_prefix"] = (1, PREFIX, text_width)
        shapes["prompt_learner.token_suffix"] = (1, context - PREFIX - LEARNT, text_width)
        shapes["text_encoder.positional_embedding"] = (context, text_width)
        shapes["text_encoder.text_projection"] = (text_width, embed)
        shapes |= _transformer_shapes("text_encoder.transformer", text_width, sizes.get("text_layers", 12))
        shapes |= _pair_shapes("text_encoder.ln_final", text_width)
    return shapes


def _pair_shapes(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _norm_shapes(name, width):
    running = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,), f"{name}.num_batches_tracked": ()}
    return _pair_shapes(name, width) | running


def _linear_shapes(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _transformer_shapes(name, width, layers):
    shapes = {}
    for layer in range(layers):
        block = f"{name}.resblocks.{layer}"
        shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
        shapes |= _linear_shapes(f"{block}.attn.out_proj", width, width)
        shapes |= _pair_shapes(f"{block}.ln_1", width)
        shapes |= _linear_shapes(f"{block}.mlp.c_fc", width, 4 * width)
        shapes |= _linear_shapes(f"{block}.mlp.c_proj", 4 * width, width)
        shapes |= _pair_shapes(f"{block}.ln_2", width)
    return shapes


def _vit_shapes(width, layers, patch, embed, image_size, stride):
    tokens = math.prod(grid(image_size, patch, stride)) + 1
    shapes = {
        "image_encoder.class_embedding": (width,),
        "image_encoder.positional_embedding": (tokens, width),
        "image_encoder.proj": (width, embed),
        "image_encoder.conv1.weight": (width, 3, patch, patch),
    }
    shapes |= _pair_shapes("image_encoder.ln_pre", width)
    shapes |= _transformer_shapes("image_encoder.transformer", width, layers)
    return shapes | _pair_shapes("image_encoder.ln_post", width)


def _rn50_shapes(width, blocks, embed, image_size):
    shapes = {}
    stem = (3, width // 2, width // 2, width)
    for number in (1, 2, 3):
        shapes[f"image_encoder.conv{number}.weight"] = (stem[number], stem[number - 1], 3, 3)
        shapes |= _norm_shapes(f"image_encoder.bn{number}", stem[number])
    inputs = width
    for stage, count in enumerate(blocks):
        planes = width * 2**stage
        for index in range(count):
            block = f"image_encoder.layer{stage + 1}.{index}"
            convolutions = ((planes, inputs, 1, 1), (planes, planes, 3, 3), (4 * planes, planes, 1, 1))
            for number, shape in enumerate(convolutions, 1):
                shapes[f"{block}.conv{number}.weight"] = shape
                shapes |= _norm_shapes(f"{block}.bn{number}", shape[0])
            if index == 0:
                shapes[f"{block}.downsample.0.weight"] = (4 * planes, inputs, 1, 1)
                shapes |= _norm_shapes(f"{block}.downsample.1", 4 * planes)
            inputs = 4 * planes
    shapes["image_encoder.attnpool.positional_embedding"] = (math.prod(grid(image_size)) + 1, inputs)
    for name in "kqv":
        shapes |= _linear_shapes(f"image_encoder.attnpool.{name}_proj", inputs, inputs)
    return shapes | _linear_shapes("image_encoder.attnpool.c_proj", inputs, embed)


def _simclr_shapes(name, inputs, hidden, outputs):
    shapes = _linear_shapes(f"{name}.layer1", inputs, hidden) | _norm_shapes(f"{name}.bn1", hidden)
    shapes |= _linear_shapes(f"{name}.layer2", hidden, hidden) | _norm_shapes(f"{name}.bn2", hidden)
    return shapes | _linear_shapes(f"{name}.layer3", hidden, outputs)


def random_state(shapes, seed, dtype=torch.float64):
    """A state dict of that layout in which every value matters: no gain is 1, no bias or running mean 0, and
    weights are scaled so that activations stay of order 1."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        normal = torch.randn(shape, generator=generator, dtype=torch.float64)
        last = name.rsplit(".", 1)[-1]
        if last == "num_batches_tracked":
            state[name] = torch.zeros(shape, dtype=torch.int64)
            continue
        if last == "running_var":
            value = 0.75 + torch.rand(shape, generator=generator, dtype=torch.float64) / 2
        elif last == "running_mean" or "bias" in last:
            value = 0.1 * normal
        elif last == "weight" and len(shape) == 1:
            value = 1 + 0.2 * normal
        elif last in ("cv_embed", "class_embedding", "positional_embedding") or name.startswith("prompt_learner."):
            value = 0.3 * normal
        elif last in ("proj", "text_projection"):
            value = normal / shape[0] ** 0.5
        else:
            value = normal / math.prod(shape[1:]) ** 0.5
            if len(shape) == 4:  # most convolutions see rectified values
                value = value * 2**0.5
        if any(part in name for part in ("out_proj.weight", "c_proj.weight", "bn3.weight")):
            value = value / 2  # the last factor of a residual branch
        state[name] = value.to(dtype)
    return state


# ---------------------------------------------------------------------------------------------------------------
# Layers
# ---------------------------------------------------------------------------------------------------------------


def linear(state, name, x):
    """x [..., inputs] -> [..., outputs], with the bias if there is one."""
    y = x @ state[f"{name}.weight"].T
    return y + state[f"{name}.bias"] if f"{name}.bias" in state else y


def layer_norm(state, name, x):
    """Normalise the last axis of x [..., W] by its mean and biased variance; gain and bias."""
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return centred / (variance + EPS).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def batch_norm(state, name, x, training, moved=None):
    """Normalise every channel (axis 1) of x [B, C] or [B, C, H, W].

    training: by the batch's mean and biased variance; else by the running ones. With a dict `moved`, the running
    statistics after this pass (momentum 0.1, unbiased variance) are put there, continuing from those already in it.
    """
    axes = [axis for axis in range(x.ndim) if axis != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    if training:
        mean = x.mean(axes)
        variance = ((x - mean.view(shape)) ** 2).mean(axes)
        if moved is not None:
            count = x.numel() // x.shape[1]
            if count < 2:
                raise ValueError("batch statistics need more than one value per channel")
            old = {key: moved.get(f"{name}.{key}", state[f"{name}.{key}"]) for key in RUNNING}
            unbiased = variance.detach() * count / (count - 1)
            moved[f"{name}.running_mean"] = (1 - MOMENTUM) * old["running_mean"] + MOMENTUM * mean.detach()
            moved[f"{name}.running_var"] = (1 - MOMENTUM) * old["running_var"] + MOMENTUM * unbiased
            moved[f"{name}.num_batches_tracked"] = old["num_batches_tracked"] + 1
    else:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    y = (x - mean.view(shape)) / (variance.view(shape) + EPS).sqrt()
    return y * state[f"{name}.weight"].view(shape) + state[f"{name}.bias"].view(shape)


def quick_gelu(x):
    return x / (1 + torch.exp(-1.702 * x))


def relu(x):
    return torch.where(x > 0, x, torch.zeros_like(x))


def unit(x):
    """Rows of length 1."""
    return x / (x**2).sum(-1, keepdim=True).sqrt().clamp(min=1e-12)


def attention(q, k, v, heads, causal=False):
    """Scaled dot-product attention of [B, T, W] tensors, `heads` slices of the width apart; -> [B, T, W]."""
    size = q.shape[-1] // heads
    outputs = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / size**0.5
        if causal:  # a position sees itself and those before it
            future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(future, -math.inf)
        outputs.append(torch.softmax(scores, -1) @ v[..., part])
    return torch.cat(outputs, -1)


def transformer_block(state, name, x, heads, causal):
    """CLIP's pre-norm residual block on x [B, T, W]."""
    y = layer_norm(state, f"{name}.ln_1", x)
    qkv = y @ state[f"{name}.attn.in_proj_weight"].T + state[f"{name}.attn.in_proj_bias"]
    x = x + linear(state, f"{name}.attn.out_proj", attention(*qkv.chunk(3, -1), heads, causal))
    y = layer_norm(state, f"{name}.ln_2", x)
    return x + linear(state, f"{name}.mlp.c_proj", quick_gelu(linear(state, f"{name}.mlp.c_fc", y)))


def transformer(state, name, x, heads, causal):
    """x [B, T, W] -> list of the outputs of every block."""
    outputs = []
    while f"{name}.resblocks.{len(outputs)}.ln_1.weight" in state:
        x = transformer_block(state, f"{name}.resblocks.{len(outputs)}", x, heads, causal)
        outputs.append(x)
    return outputs


# ---------------------------------------------------------------------------------------------------------------
# Towers
# ---------------------------------------------------------------------------------------------------------------


def resize_positions(table, old, new):
    """Position table [1 + rows * columns, W] of a grid `old` -> that of a grid `new`; grids are (rows, columns).

    The first row (class token, or the mean token of the attention pool) stays. The others are a map, sampled
    bilinearly at pixel centres (align_corners=False), without antialiasing.
    """
    (rows, columns), (new_rows, new_columns) = old, new
    if table.shape[0] != rows * columns + 1:
        raise ValueError(f"{table.shape[0]} positions are not 1 + {rows} x {columns}")

    def neighbours(index, size, new_size):
        place = max((index + 0.5) * size / new_size - 0.5, 0.0)
        low = min(int(place), size - 1)
        return low, min(low + 1, size - 1), place - low

    out = [table[0]]
    for row in range(new_rows):
        top, bottom, down = neighbours(row, rows, new_rows)
        for column in range(new_columns):
            left, right, across = neighbours(column, columns, new_columns)
            upper = (1 - across) * table[1 + top * columns + left] + across * table[1 + top * columns + right]
            lower = (1 - across) * table[1 + bottom * columns + left] + across * table[1 + bottom * columns + right]
            out.append((1 - down) * upper + down * lower)
    return torch.stack(out)


def vit(state, images, *, heads=None, stride=16, side_row=None, tokens=False):
    """CLIP's vision transformer on normalised images [B, 3, H, W] -> (penultimate, last, projected).

    penultimate [B, W]: class token after the last block but one, without the final layer norm;
    last [B, W]: class token after the last block and the final layer norm; projected [B, D] = last @ proj.
    side_row [B, W], already scaled, is added to the class token only, before positions and first layer norm.
    tokens=True: the same of all tokens, [B, T, .]. heads: width // 64 if None.
    """
    weight = state["image_encoder.conv1.weight"]
    width = weight.shape[0]
    patches = conv2d(images, weight, stride=stride).flatten(2).transpose(1, 2)
    start = state["image_encoder.class_embedding"].expand(len(images), 1, width)
    if side_row is not None:
        start = start + side_row[:, None]
    x = torch.cat([start, patches], 1) + state["image_encoder.positional_embedding"]
    x = layer_norm(state, "image_encoder.ln_pre", x)
    outputs = transformer(state, "image_encoder.transformer", x, heads or width // 64, causal=False)
    last = layer_norm(state, "image_encoder.ln_post", outputs[-1])
    triple = outputs[-2], last, last @ state["image_encoder.proj"]
    return triple if tokens else tuple(x[:, 0] for x in triple)


def sie_rows(state, scale, camids, viewids, cams, views, camera, view):
    """Scaled rows [B, W] of the side-information table for camera and/or view ids (flags `camera`, `view`); `cams`
    and `views` are their numbers. With both, a row per pair: camera * views + view. None with neither."""
    if not camera and not view:
        return None
    table = state["cv_embed"]
    if len(table) != (cams if camera else 1) * (views if view else 1):
        raise ValueError(f"{len(table)} rows for {cams} cameras and {views} views")
    rows = []
    for cam, look in zip(camids, viewids, strict=True):
        rows.append(int(cam) * views + int(look) if camera and view else int(cam) if camera else int(look))
    return scale * table[rows]


def rn50(state, images, *, heads=None, training=False, moved=None, tokens=False):
    """CLIP's ResNet with the last stage at stride 1, on images [B, 3, H, W] -> (penultimate, last, projected).

    penultimate [B, 16 w], last [B, 32 w]: means over the third and the fourth stage's map; projected [B, D]: token
    0 of the attention pool. tokens=True: the two maps [B, ., H/16, W/16] and all tokens [B, 1 + H/16 * W/16, D].
    training and moved: see `batch_norm`. heads of the attention pool: its width // 64 if None.
    """

    def conv_norm(x, conv, norm, padding=0, stride=1):
        x = conv2d(x, state[f"image_encoder.{conv}.weight"], padding=padding, stride=stride)
        return batch_norm(state, f"image_encoder.{norm}", x, training, moved)

    x = images
    for number in (1, 2, 3):
        x = relu(conv_norm(x, f"conv{number}", f"bn{number}", padding=1, stride=2 if number == 1 else 1))
    x = avg_pool2d(x, 2)
    maps = []
    for stage, stride in ((1, 1), (2, 2), (3, 2), (4, 1)):
        index = 0
        while f"image_encoder.layer{stage}.{index}.conv1.weight" in state:
            block = f"layer{stage}.{index}"
            y = relu(conv_norm(x, f"{block}.conv1", f"{block}.bn1"))
            y = relu(conv_norm(y, f"{block}.conv2", f"{block}.bn2", padding=1))
            shrink = stride if index == 0 else 1
            y = conv_norm(avg_pool2d(y, shrink), f"{block}.conv3", f"{block}.bn3")
            if index == 0:
                x = conv_norm(avg_pool2d(x, shrink), f"{block}.downsample.0", f"{block}.downsample.1")
            x = relu(x + y)
            index += 1
        maps.append(x)
    sequence = attention_pool(state, "image_encoder.attnpool", maps[3], heads)
    if tokens:
        return maps[2], maps[3], sequence
    return maps[2].mean((2, 3)), maps[3].mean((2, 3)), sequence[:, 0]


def attention_pool(state, name, x, heads=None):
    """Map [B, W, H, V] -> [B, 1 + H * V, D]: self-attention over its mean and its places, with positions."""
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([x.mean(1, keepdim=True), x], 1) + state[f"{name}.positional_embedding"]
    q, k, v = (linear(state, f"{name}.{part}_proj", x) for part in "qkv")
    return linear(state, f"{name}.c_proj", attention(q, k, v, heads or x.shape[-1] // 64))


def tower(state, images, *, heads=None, stride=16, side_row=None, training=False, moved=None):
    """The image tower which the state holds; see `vit` and `rn50` (which knows no side information)."""
    if "image_encoder.attnpool.positional_embedding" in state:
        return rn50(state, images, heads=heads, training=training, moved=moved)
    return vit(state, images, heads=heads, stride=stride, side_row=side_row)


def prompts(state, pids):
    """Prompt embeddings [N, L, W] of the identities: fixed prefix, the identity's learned vectors, fixed suffix."""
    parts = []
    for pid in pids:
        learned = state["prompt_learner.cls_ctx"][int(pid)]
        parts.append(
            torch.cat([state["prompt_learner.token_prefix"][0], learned, state["prompt_learner.token_suffix"][0]])
        )
    return torch.stack(parts)


def text(state, prompts, *, heads=None, end=END):
    """CLIP's text transformer over all positions of prompt embeddings [N, L, W], read at position `end`: [N, D]."""
    x = prompts + state["text_encoder.positional_embedding"]
    x = transformer(state, "text_encoder.transformer", x, heads or x.shape[-1] // 64, causal=True)[-1]
    return layer_norm(state, "text_encoder.ln_final", x)[:, end] @ state["text_encoder.text_projection"]


# ---------------------------------------------------------------------------------------------------------------
# Prompt augmentations, the draws given
# ---------------------------------------------------------------------------------------------------------------


def mask(prompts, zeroed):
    """prompts [U, L, W] with the scalars marked in the boolean `zeroed` [U, L, W] set to 0; no rescaling."""
    return torch.where(zeroed, torch.zeros_like(prompts), prompts)


def swap(prompts, positions, order):
    """Per prompt u, embeddings exchanged: place positions[u][n] gets what stood at positions[u][order[u][n]]."""
    out = prompts.clone()
    for u in range(len(prompts)):
        for place, source in enumerate(order[u]):
            out[u, int(positions[u][place])] = prompts[u, int(positions[u][int(source)])]
    return out


def mix(prompts, partners, strength):
    """(1 - strength) * prompt u + strength * prompt partners[u], all from the unmixed prompts."""
    return torch.stack([(1 - strength) * prompts[u] + strength * prompts[int(v)] for u, v in enumerate(partners)])


# ---------------------------------------------------------------------------------------------------------------
# Heads
# ---------------------------------------------------------------------------------------------------------------


def simclr_head(state, prefix, x, training=True, moved=None):
    """The three-layer head `prefix` (image_mlp or text_mlp) on x [B, inputs] -> [B, outputs]."""
    x = relu(batch_norm(state, f"{prefix}.bn1", linear(state, f"{prefix}.layer1", x), training, moved))
    x = relu(batch_norm(state, f"{prefix}.bn2", linear(state, f"{prefix}.layer2", x), training, moved))
    return linear(state, f"{prefix}.layer3", x)


def simsiam_head(state, prefix, x, training=True, moved=None):
    """The predictor `prefix` on x [B, W] -> [B, W]."""
    x = relu(batch_norm(state, f"{prefix}.bn1", linear(state, f"{prefix}.linear1", x), training, moved))
    return linear(state, f"{prefix}.layer2", x)


def bnneck(state, name, x, training, moved=None):
    """Batch normalisation `name` (bottleneck or bottleneck_proj) of features [B, W]."""
    return batch_norm(state, name, x, training, moved)


def classify(state, name, x):
    """Scores [B, C] of the classifier `name` (classifier or classifier_proj), which has no bias."""
    return x @ state[f"{name}.weight"].T


def embed(state, last, projected, neck_feat="before"):
    """The retrieval feature [B, W + D]: last and projected one after the other, "before" the necks, or, with any
    other value, after them (running statistics). Not normalised."""
    if neck_feat != "before":
        last = bnneck(state, "bottleneck", last, training=False)
        projected = bnneck(state, "bottleneck_proj", projected, training=False)
    return torch.cat([last, projected], -1)


# ---------------------------------------------------------------------------------------------------------------
# Losses
# ---------------------------------------------------------------------------------------------------------------


def log_softmax(x):
    """Over the last axis."""
    x = x - x.amax(-1, keepdim=True).detach()
    return x - x.exp().sum(-1, keepdim=True).log()


def cross_entropy(scores, labels, smoothing=0.1):
    """Mean over rows of scores [B, C]: -(1 - s) log p(label) - s / C * sum over all classes of log p(class)."""
    total = 0
    for row, label in zip(log_softmax(scores), labels, strict=True):
        total = total - (1 - smoothing) * row[int(label)] - smoothing * row.mean()
    return total / len(scores)


def triplet(features, pids, margin=0.3):
    """Batch-hard triplet loss on un-normalised features [B, W]: per anchor the farthest row of its identity against
    the nearest of another; mean of max(0, gap + margin), or of log(1 + exp(gap)) if margin is None."""
    pids = [int(pid) for pid in pids]
    total = 0
    for anchor, pid in zip(features, pids, strict=True):
        distance = ((anchor - features) ** 2).sum(-1).clamp(min=1e-12).sqrt()
        positive = torch.stack([d for d, other in zip(distance, pids, strict=True) if other == pid]).max()
        negative = torch.stack([d for d, other in zip(distance, pids, strict=True) if other != pid]).min()
        gap = positive - negative
        total = total + ((1 + gap.exp()).log() if margin is None else relu(gap + margin))
    return total / len(features)


def sup_con(anchors, candidates, anchor_labels, candidate_labels):
    """Supervised contrast of anchors [A, D] against candidates [B, D], un-normalised, at temperature 1: mean over
    anchors of minus the mean log-probability of the candidates with the anchor's label."""
    total = 0
    for row, label in zip(log_softmax(anchors @ candidates.T), anchor_labels, strict=True):
        positives = [p for p, other in zip(row, candidate_labels, strict=True) if int(other) == int(label)]
        total = total - torch.stack(positives).mean()
    return total / len(anchors)


def nt_xent(first, second, temperature=0.1):
    """SimCLR's loss of two views [N, D]: every row against its twin, among all rows of the other view and the other
    rows of its own; cosine similarities over temperature; mean over both directions."""
    first, second = unit(first), unit(second)
    total = 0
    for own, other in ((first, second), (second, first)):
        for i in range(len(own)):
            rivals = [own[i] @ other[j] for j in range(len(other))]
            rivals += [own[i] @ own[j] for j in range(len(own)) if j != i]
            total = total - log_softmax(torch.stack(rivals) / temperature)[i] / len(own)
    return total / 2


def class_means(features, classes):
    """Classes -> the mean of their unit features, at length 1, in a dictionary."""
    rows = {}
    for feature, one in zip(features, classes, strict=True):
        rows.setdefault(one, []).append(unit(feature))
    return {one: unit(torch.stack(mine).mean(0)) for one, mine in sorted(rows.items())}


def prototype_contrast(features, pids, prototypes, temperature=0.05):
    """PCL-CLIP: every image against a prototype of each identity {pid: [D]}, of which its own is right."""
    total = 0
    for feature, pid in zip(features, pids, strict=True):
        scores = torch.stack([unit(feature) @ prototype for prototype in prototypes.values()]) / temperature
        total = total - log_softmax(scores)[list(prototypes).index(pid)] / len(features)
    return total


def camera_contrast(features, pids, camids, proxies, temperature=0.07, negatives=50):
    """The inter-camera loss of camera-aware proxies {(pid, camid): [D]}: positives are the own identity's in other
    cameras, negatives the most similar ones of other identities; images without a positive do not count."""
    terms = []
    for feature, pid, camid in zip(features, pids, camids, strict=True):
        scores = {place: unit(feature) @ proxy / temperature for place, proxy in proxies.items()}
        positives = [score for (owner, where), score in scores.items() if owner == pid and where != camid]
        others = [score for (owner, _), score in scores.items() if owner != pid]
        if positives:
            hardest = sorted(others, key=lambda score: -score.item())[:negatives]
            odds = sum(score.exp() for score in positives + hardest)
            terms.append(-sum((score.exp() / odds).log() for score in positives) / len(positives))
    return sum(terms) / len(terms)


def moved_prototypes(prototypes, features, classes, momentum):
    """Prototypes after a batch: one image after the other draws its class's towards itself, at length 1 again."""
    prototypes = dict(prototypes)
    for feature, one in zip(features, classes, strict=True):
        prototypes[one] = unit(momentum * prototypes[one] + (1 - momentum) * unit(feature))
    return prototypes


def simsiam(first_prediction, second_prediction, first, second):
    """Minus the mean cosine of each view's prediction and the other view's feature, which gets no gradient."""
    one = (unit(first_prediction) * unit(second.detach())).sum(-1).mean()
    two = (unit(second_prediction) * unit(first.detach())).sum(-1).mean()
    return -(one + two) / 2


def stage1_total(images, texts, labels, views=None, weight=0.0):
    """Prompt stage: image features and text features [B, D], one text row per image; `views` are the two outputs
    [U, .] of the text head, or None. -> {total, image_text, language_ssl}."""
    contrast = sup_con(images, texts, labels, labels) + sup_con(texts, images, labels, labels)
    ssl = nt_xent(*views) if views is not None else torch.zeros((), dtype=images.dtype)
    return {"total": contrast + weight * ssl, "image_text": contrast, "language_ssl": ssl}


def stage2_total(scores, features, text_scores, pids, *, weights, ssl=None, smoothing=0.1, margin=0.3):
    """Image stage: two classifiers' `scores` [B, C], the triple of un-normalised `features`, `text_scores` [B, C] =
    projected @ text features (None: the baseline). weights: dict with id, triplet, image_text, image_ssl.
    -> unweighted terms of these names, and the weighted total."""
    zero = torch.zeros((), dtype=features[0].dtype)
    terms = {
        "id": sum(cross_entropy(s, pids, smoothing) for s in scores),
        "triplet": sum(triplet(f, pids, margin) for f in features),
        "image_text": zero if text_scores is None else cross_entropy(text_scores, pids, smoothing),
        "image_ssl": zero if ssl is None else ssl,
    }
    return {"total": sum(weight * terms[name] for name, weight in weights.items()), **terms}


# ---------------------------------------------------------------------------------------------------------------
# Optimisation
# ---------------------------------------------------------------------------------------------------------------


def stage1_lr(epoch, *, epochs=120, base=3.5e-4, init=1e-5, minimum=1e-6, warmup=5):
    """Learning rate of epoch 1..epochs: linear from init, then a cosine which counts from epoch 0, not from the end
    of the warm-up."""
    if epoch < warmup:
        return init + epoch * (base - init) / warmup
    if epoch >= epochs:
        return minimum
    return minimum + (base - minimum) * (1 + math.cos(math.pi * epoch / epochs)) / 2


def stage2_lr(epoch, *, base=5e-6, factor=0.1, iters=10, steps=(30, 50), gamma=0.1):
    """Learning rate of epoch 1..: linear warm-up from factor * base over `iters` epochs, times gamma per step."""
    rate = base * gamma ** sum(step <= epoch for step in steps)
    if epoch < iters:
        rate *= factor * (1 - epoch / iters) + epoch / iters
    return rate


def trained(state):
    """Names which the image stage optimises. The text head is among them, but never gets a gradient."""
    frozen = ("prompt_learner.", "text_encoder.")
    necks = ("bottleneck.bias", "bottleneck_proj.bias")
    return [
        name
        for name in state
        if not name.startswith(frozen) and name not in necks and name.rsplit(".", 1)[-1] not in RUNNING
    ]


def group_rules(names, *, bias_factor=2, decay=1e-4, decay_bias=1e-4, large_fc=False):
    """{name: (factor of the learning rate, weight decay)}. A bias is every tensor with "bias" in its name."""
    rules = {}
    for name in names:
        factor = bias_factor if "bias" in name else 1
        if large_fc and "classifier" in name:
            factor = 2
        rules[name] = (factor, decay_bias if "bias" in name else decay)
    return rules


def adam_step(params, grads, moments, rates, decays, betas=(0.9, 0.999), eps=1e-8):
    """One step of Adam, weight decay as part of the gradient (coupled). All arguments are dicts by name; a tensor
    whose gradient is None or absent stays. moments {name: (steps, first, second)}, at first empty, is updated.
    -> new params."""
    new = dict(params)
    for name, value in params.items():
        gradient = grads.get(name)
        if gradient is None:
            continue
        gradient = gradient + decays[name] * value
        steps, first, second = moments.get(name, (0, torch.zeros_like(value), torch.zeros_like(value)))
        steps += 1
        first = betas[0] * first + (1 - betas[0]) * gradient
        second = betas[1] * second + (1 - betas[1]) * gradient**2
        moments[name] = (steps, first, second)
        corrected = first / (1 - betas[0] ** steps)
        scale = (second / (1 - betas[1] ** steps)).sqrt() + eps
        new[name] = value - rates[name] * corrected / scale
    return new


# ---------------------------------------------------------------------------------------------------------------
# Image transforms on uint8 arrays [H, W, 3], the draws given (resizing is left to PIL)
# ---------------------------------------------------------------------------------------------------------------


def flip(image):
    return image[:, ::-1]


def pad_crop(image, padding, top, left):
    """Black borders of `padding` pixels on all sides, then a window of the old size at (top, left)."""
    height, width, _ = image.shape
    padded = np.zeros((height + 2 * padding, width + 2 * padding, 3), image.dtype)
    padded[padding : padding + height, padding : padding + width] = image
    return padded[top : top + height, left : left + width]


def normalise(image, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)):
    """uint8 [H, W, 3] -> float64 tensor [3, H, W]: to [0, 1], minus mean, over std."""
    values = (image.astype(np.float64) / 255 - np.asarray(mean)) / np.asarray(std)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))


def erase_size(share, aspect, height, width):
    """(rows, columns) of a box of that share of the picture and that rows / columns, or None if it does not fit."""
    rows = round(math.sqrt(share * height * width * aspect))
    columns = round(math.sqrt(share * height * width / aspect))
    return (rows, columns) if rows < height and columns < width else None


def erase(image, top, left, noise):
    """Normalised image [3, H, W] with the values noise [3, rows, columns] at (top, left)."""
    out = image.clone()
    out[:, top : top + noise.shape[1], left : left + noise.shape[2]] = noise
    return out


def train_view(image, *, flipped, padding, top, left, erased=None, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)):
    """Everything after resizing, in order: flip, pad, crop, normalise, erase (erased: None or (top, left, noise))."""
    image = pad_crop(flip(image) if flipped else image, padding, top, left)
    image = normalise(image, mean, std)
    return image if erased is None else erase(image, *erased)


# ---------------------------------------------------------------------------------------------------------------
# Retrieval
# ---------------------------------------------------------------------------------------------------------------


def squared_distances(queries, gallery):
    """[Q, W] and [G, W] -> float64 [Q, G]."""
    queries, gallery = np.asarray(queries, np.float64), np.asarray(gallery, np.float64)
    return np.stack([((query - gallery) ** 2).sum(-1) for query in queries])


def cmc_map(dist, q_pids, g_pids, q_cams, g_cams, max_rank=50):
    """(CMC [min(max_rank, G)], mAP) of distances [Q, G].

    Per query, gallery entries of its identity and camera are left out, and a query without a match is. The average
    precision is the mean of (number of hits so far) / rank over the hits. A CMC shorter than asked for keeps its
    last value. Equal distances keep the gallery's order.
    """
    dist = np.asarray(dist, np.float64)
    ranks = min(max_rank, dist.shape[1])
    curves, precisions = [], []
    for row, pid, cam in zip(dist, q_pids, q_cams, strict=True):
        hits = []
        for j in sorted(range(len(row)), key=lambda j: row[j]):
            if g_pids[j] != pid or g_cams[j] != cam:
                hits.append(bool(g_pids[j] == pid))
        if not any(hits):
            continue
        curves.append([1.0 if any(hits[: rank + 1]) else 0.0 for rank in range(ranks)])
        found = [rank for rank, hit in enumerate(hits, 1) if hit]
        precisions.append(sum(number / rank for number, rank in enumerate(found, 1)) / len(found))
    if not curves:
        raise ValueError("no query has a match in the gallery")
    return np.mean(curves, axis=0), sum(precisions) / len(precisions)


def cmc_map_by_sorting(distances, dropped, query_pids, gallery_pids, *, unique_identities=False, top=50):
    """(average precision [V], inverse negative penalty [V], CMC of each [V, top]) in float64 of the queries that have a
    match, of tensors: distances [Q, G] and dropped [Q, G], with the whole gallery in order."""
    distances = distances.clamp(max=torch.finfo(distances.dtype).max).masked_fill(dropped, torch.inf)
    order = distances.sort(dim=1, stable=True).indices
    hits = (gallery_pids[order] == query_pids[:, None]) & ~dropped.gather(1, order)
    valid = hits.any(dim=1)
    hits, pids = hits[valid], gallery_pids[order[valid]]
    matches, found = hits.sum(dim=1), hits.cumsum(dim=1)
    last = (found == matches[:, None]).int().argmax(dim=1) + 1
    first = hits.int().argmax(dim=1, keepdim=True)
    if unique_identities:
        ordered, places = pids.sort(dim=1, stable=True)
        new = torch.ones_like(ordered, dtype=torch.bool)
        new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        new = torch.zeros_like(new).scatter(1, places, new)
        first = (new.cumsum(dim=1) - 1).gather(1, first)
    cmc = (first <= torch.arange(top)).double()
    ranks = torch.arange(1, hits.shape[1] + 1)
    precision = torch.where(hits, found / ranks.double(), 0.0).sum(dim=1) / matches
    return precision, matches / last.double(), cmc


def rerank_dense(queries, gallery, k1=50, k2=15, lam=0.3):
    """k-reciprocal re-ranking (Zhong et al. 2017) in float64 on squared distances; features [Q, W], [G, W] as they
    are compared (normalised before, if at all) -> distances [Q, G]."""
    d, order = _joint(queries, gallery)
    q = len(queries)
    return ((1 - lam) * _jaccard(d, order, k1, k1, k2)[:q] + lam * d[:q])[:, q:]


def jaccard_dense(features, k1=30, k2=6):
    """Jaccard distances [N, N] of k-reciprocal neighbourhoods in float64, on squared distances as they are; features
    [N, W]. Published programs for clusters count an image among its own k1 neighbours, but not in the half of them."""
    points = np.asarray(features, np.float64)
    d = squared_distances(points, points)
    order = np.argsort(d - np.eye(len(d)), axis=1, kind="stable")  # every image ahead of its copies
    return _jaccard(d, order, k1, k1 - 1, k2)


def _jaccard(d, order, k1, full, k2):
    """Of all images, from their distances and orders [N, N]; the image itself and `full` may be reciprocal."""
    v = np.zeros_like(d)
    for i in range(len(d)):
        members = _expanded(order, i, k1, full)
        v[i, members] = np.exp(-d[i, members]) / np.exp(-d[i, members]).sum()
    if k2 != 1:
        v = np.stack([v[order[i, :k2]].mean(0) for i in range(len(d))])
    shared = np.stack([np.minimum(row, v).sum(1) for row in v])
    return 1 - shared / (2 - shared)


def rerank_half(queries, gallery, k1=50, k2=15, lam=0.3):
    """The same as published programs compute it: distances in float32, weights, their sums of minima (added column
    by column) and Jaccard distances in float16. Up to 5e-3 from `rerank_dense`."""
    d, order = _joint(queries, gallery, np.float32)
    total, q = len(d), len(queries)
    v = np.zeros((total, total), np.float16)
    for i in range(total):
        members = _expanded(order, i, k1)
        weights = np.exp(-d[i, members])
        v[i, members] = weights / weights.sum()
    if k2 != 1:
        v = np.stack([v[order[i, :k2]].mean(0, dtype=np.float32).astype(np.float16) for i in range(total)])
    jaccard = np.zeros((q, total), np.float16)
    for i in range(q):
        shared = np.zeros(total, np.float16)
        for column in np.flatnonzero(v[i]):
            shared += np.minimum(v[i, column], v[:, column])
        jaccard[i] = 1 - shared / (2 - shared)
    return (jaccard * np.float16(1 - lam) + np.float32(lam) * d[:q])[:, q:]


def _joint(queries, gallery, dtype=np.float64):
    """Squared distances of queries and gallery together, every column over its maximum, transposed; and each row's
    order, nearest first."""
    points = np.concatenate([np.asarray(queries, np.float64), np.asarray(gallery, np.float64)])
    d = squared_distances(points, points).astype(dtype)
    d = (d / d.max(0)).T
    return d, np.argsort(d, axis=1, kind="stable")


def _reciprocal(order, i, k):
    """Those among the k + 1 nearest of i which have i among their k + 1 nearest."""
    return [j for j in order[i, : k + 1] if i in order[j, : k + 1]]


def _expanded(order, i, k1, full=None):
    """k1-reciprocal neighbours of i (or `full` of them), and the (k1 / 2)-reciprocal sets of those of them, more than
    two thirds of whose set lie within; sorted. The half is rounded to even."""
    core = set(_reciprocal(order, i, k1 if full is None else full))
    members = set(core)
    for j in core:
        candidates = set(_reciprocal(order, j, round(k1 / 2)))
        if 3 * len(candidates & core) > 2 * len(candidates):
            members |= candidates
    return sorted(members)


# ---------------------------------------------------------------------------------------------------------------
# Whole stages, the batches and draws given
# ---------------------------------------------------------------------------------------------------------------


def replay_prompt_stage(
    state,
    features,
    pids,
    *,
    batches,
    zeroed=None,
    weight=0.8,
    schedule=None,
    decay=1e-4,
    heads=None,
    end=END,
    augment=mask,
    moved=None,
):
    """Stage 1: learn the prompt vectors of all identities against fixed image features.

    features [images, D], pids [images]. batches[epoch][step]: list of indices into them. zeroed[epoch][step]: the
    draws of the two views, for the batch's distinct identities in ascending order (booleans [U, L, W] for `mask`;
    augment(prompts, draw) for another augmentation). No self-supervision where it is None, nor in batches of one
    identity. The text head is not trained; its normalisations use each view's statistics.
    schedule: keywords of `stage1_lr`, epochs by default the number replayed. moved: see `batch_norm`.
    -> (per step {total, image_text, language_ssl} as floats, final cls_ctx [C, 4, W]).
    """
    name = "prompt_learner.cls_ctx"
    schedule = {"epochs": len(batches), **(schedule or {})}
    params, moments, steps = {name: state[name].detach().clone()}, {}, []
    moved = {} if moved is None else moved
    for epoch, epoch_batches in enumerate(batches):
        rate = stage1_lr(epoch + 1, **schedule)
        for step, indices in enumerate(epoch_batches):
            context = params[name].clone().requires_grad_()
            current = {**state, name: context}
            labels = [int(pids[i]) for i in indices]
            distinct = sorted(set(labels))
            embedded = prompts(current, distinct)
            texts = text(current, embedded, heads=heads, end=end)[[distinct.index(label) for label in labels]]
            views = None
            draws = zeroed[epoch][step] if zeroed is not None else None
            if draws is not None and len(distinct) > 1:
                views = [text(current, augment(embedded, draw), heads=heads, end=end) for draw in draws]
                views = [simclr_head(current, "text_mlp", view, moved=moved) for view in views]
            terms = stage1_total(features[list(indices)], texts, labels, views, weight)
            (gradient,) = torch.autograd.grad(terms["total"], [context])
            params = adam_step(params, {name: gradient}, moments, {name: rate}, {name: decay})
            steps.append({key: value.item() for key, value in terms.items()})
    return steps, params[name]


def replay_image_stage(
    state,
    batches,
    text_features,
    *,
    weights,
    stride=16,
    heads=None,
    side=None,
    ssl=None,
    temperature=0.1,
    smoothing=0.1,
    margin=0.3,
    schedule=None,
    bias_factor=2,
    decay=1e-4,
    decay_bias=1e-4,
):
    """Stage 2: train the image tower, classifiers, necks and image head.

    batches[epoch][step]: dict of images [B, 3, H, W], pids, camids and viewids [B] (both only with `side`), views
    [2, B, 3, H, W] (only with `ssl`: "SIMCLR" or "SIMSIAM"). text_features [C, D] are fixed; None: the baseline.
    weights: see `stage2_total`. side: keywords scale, cams, views, camera, view of `sie_rows`, or None; the views
    go without it. schedule: keywords of `stage2_lr`. Normalisations use the batch's statistics and move the running
    ones: the tower on images, twin 0, twin 1 in that order; the image head on twin 0, twin 1.
    -> (per step {total, id, triplet, image_text, image_ssl} as floats, final state).
    """
    state = {name: value.detach().clone() for name, value in state.items()}
    names = trained(state)
    rules = group_rules(names, bias_factor=bias_factor, decay=decay, decay_bias=decay_bias)
    decays = {name: rules[name][1] for name in names}
    moments, steps = {}, []
    for epoch, epoch_batches in enumerate(batches, 1):
        rate = stage2_lr(epoch, **(schedule or {}))
        rates = {name: rate * rules[name][0] for name in names}
        for batch in epoch_batches:
            params = {name: state[name].clone().requires_grad_() for name in names}
            moved = {}
            terms = image_stage_terms(
                {**state, **params},
                batch,
                text_features,
                weights=weights,
                stride=stride,
                heads=heads,
                side=side,
                ssl=ssl,
                temperature=temperature,
                smoothing=smoothing,
                margin=margin,
                moved=moved,
            )
            gradients = torch.autograd.grad(terms["total"], list(params.values()), allow_unused=True)
            grads = dict(zip(names, gradients, strict=True))
            params = {name: value.detach() for name, value in params.items()}
            state |= adam_step(params, grads, moments, rates, decays)
            state |= moved
            steps.append({key: value.item() for key, value in terms.items()})
    return steps, state


def image_stage_terms(
    state,
    batch,
    text_features,
    *,
    weights,
    stride=16,
    heads=None,
    side=None,
    ssl=None,
    temperature=0.1,
    smoothing=0.1,
    margin=0.3,
    moved=None,
):
    """The differentiable terms of one step of `replay_image_stage` (training mode); moved: see `batch_norm`."""
    pids = [int(pid) for pid in batch["pids"]]
    row = sie_rows(state, camids=batch["camids"], viewids=batch["viewids"], **side) if side else None
    look = {"heads": heads, "stride": stride, "training": True, "moved": moved}
    features = tower(state, batch["images"], side_row=row, **look)
    scores = [
        classify(state, "classifier", bnneck(state, "bottleneck", features[1], True, moved)),
        classify(state, "classifier_proj", bnneck(state, "bottleneck_proj", features[2], True, moved)),
    ]
    text_scores = None if text_features is None else features[2] @ text_features.T
    loss = None
    if ssl is not None:
        views = [tower(state, images, **look)[1] for images in batch["views"]]
        head = {"SIMCLR": simclr_head, "SIMSIAM": simsiam_head}[ssl]
        outputs = [head(state, "image_mlp", view, True, moved) for view in views]
        loss = nt_xent(*outputs, temperature) if ssl == "SIMCLR" else simsiam(*outputs, *views)
    return stage2_total(
        scores, features, text_scores, pids, weights=weights, ssl=loss, smoothing=smoothing, margin=margin
    )
