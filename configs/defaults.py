"""Every configuration key in one row: default, meaning with its unit, choices, and whether it may change on resume.

Names and defaults are those of the published programs wherever the meaning is the same; where a default differs, the
meaning says why. What becomes of published keys that are not here is in `configs/published.py`.
"""

from __future__ import annotations

from yacs.config import CfgNode

from configs.keys import ALWAYS, UNTIL_OVER, Key, Rule, above, at_least, given, matching, one_of, within
from configs.stages import STAGES, USUAL

SIZE = Rule(lambda value: len(value) == 2 and min(value) >= 1, "two positive numbers (height, width)")
DEVICES = matching(r"auto|cpu|mps|cuda(:\d+)?", "auto, cpu, cuda, cuda:N or mps")
SSL_TYPES = Rule(
    lambda value: value in ("SIMCLR", "SIMSIAM"),
    "SIMCLR or SIMSIAM (a weight of 0.0 switches self-supervision off: SOLVER.STAGE2.SSL_LOSS_WEIGHT 0.0)",
)
ERASED = Rule(
    lambda value: len(value) == 2 and 0 < value[0] <= value[1] < 1,
    "two fractions above 0 and below 1, the smaller first",
)
QUALITIES = Rule(
    lambda value: len(value) == 2 and 1 <= value[0] <= value[1] <= 100, "two numbers from 1 to 100, the smaller first"
)
CHANNELS = Rule(lambda value: len(value) in (0, 3), "three numbers")
DEVIATIONS = Rule(lambda value: len(value) in (0, 3) and min(value, default=1) > 0, "three positive numbers")
FRACTION = Rule(lambda value: 0 <= value < 1, "at least 0 and below 1")
SEEDS = within(0, 2**32 - 1)
OPTIMIZERS = one_of("Adam", "AdamW", "SGD")
ASCENDING = Rule(
    lambda value: list(value) == sorted(set(value)) and min(value, default=1) >= 1, "ascending epochs, e.g. (30, 50)"
)
ORDER = Rule(
    lambda value: value and list(dict.fromkeys(value)) == [name for name in STAGES if name in value],
    f"names of stages in this order: {', '.join(STAGES)}",
)

# fmt: off
ROWS = (
    Key("MODEL.DEVICE", "auto", "Device: auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N or mps.", DEVICES, ALWAYS),
    Key("MODEL.NAME", "ViT-B-16",
        "CLIP's architecture by open_clip's name (ViT-B-16, ViT-L-14, RN50, ...), ViT-Tiny-8, which is in this "
        "repository, or an image tower without text: a person tower (personvit_base, solider_swin_tiny, ...) or "
        "timm/NAME (timm/vit_base_patch16_dinov3); see docs/towers.md. (The published default, resnet50, is no name "
        "that the published programs know.)",
        given("the name of an architecture, e.g. ViT-B-16")),
    Key("MODEL.PRETRAIN", "openai",
        "Weights: a tag of open_clip's (openai, laion2b_s34b_b88k, ...) or, for a timm tower, of timm's (lvd1689m), a "
        "file, rendered (for ViT-Tiny-8), or none (random weights).",
        given("a tag, a file, or none for random weights")),
    Key("MODEL.INIT_FROM", "",
        "Checkpoint whose weights training starts from: one of ours, or a published one (CLIP-ReID, SVLL-ReID, a "
        "fine-tuned person tower). Empty for none."),
    Key("MODEL.INIT_CLASSIFIER", "random",
        "Start of identity classifiers that MODEL.INIT_FROM does not have: random (near zero, as published) or means "
        "(class means of the training images' features, of length 1; imprinted weights: Qi et al., 2018).",
        one_of("random", "means")),
    Key("MODEL.ACTIVATION", "auto",
        "quick_gelu, gelu, or auto: tags, OpenAI's archives and the tiny CLIP name theirs; other files do not.",
        one_of("auto", "quick_gelu", "gelu")),
    Key("MODEL.POOLING", "auto",
        "timm towers: token (class token), avg (mean over the patches), token+avg (both), or auto: the class token if "
        "there is one, else the tower's own pooling. CLIP's ResNets: auto (mean) or gem (generalised mean of exponent "
        "3).", one_of("auto", "token", "avg", "token+avg", "gem")),
    Key("MODEL.HEADS", "all",
        "Features that have a batch-norm neck and that retrieval compares: all (as CLIP-ReID: of the last block, and "
        "projected) or last.", one_of("all", "last")),
    Key("MODEL.EMBED_DIM", 0,
        "timm towers: width of a learnt projection, the third feature; 0 for none. To be compared with prompts, it is "
        "as wide as CLIP's text features (512 for ViT-B-16).", at_least(0)),
    Key("MODEL.DROP_PATH_RATE", 0.0, "timm towers: rate of stochastic depth in the last block, where it is largest.",
        FRACTION),
    Key("MODEL.SEMANTIC_WEIGHT", 0.2,
        "SOLIDER's towers: from 0.0, features of appearance, to 1.0, semantic ones. Published: 0.2.", within(0, 1)),
    Key("MODEL.STRIDE_SIZE", (16, 16),
        "Patch stride (vertical, horizontal) in pixels. Below the patch size patches overlap (OLP: 12 for patches of "
        "16).", SIZE),
    Key("MODEL.SIE_CAMERA", False,
        "Side information (SIE): a learned vector per camera, added to the class token."),
    Key("MODEL.SIE_VIEW", False,
        "Side information: a learned vector per viewpoint of a vehicle. With SIE_CAMERA, per pair of camera and "
        "viewpoint."),
    Key("MODEL.SIE_COE", 3.0, "Factor of the side information's vector.", at_least(0)),
    Key("MODEL.SIE_TWINS", False,
        "Adds the side information to the views of the vision self-supervision, too. Published: no."),
    Key("MODEL.ID_LOSS_WEIGHT", 1.0, "Weight of the identity classification loss in stage 2; 0.0 is off.", at_least(0)),
    Key("MODEL.TRIPLET_LOSS_WEIGHT", 1.0, "Weight of the triplet loss in stage 2; 0.0 is off.", at_least(0)),
    Key("MODEL.I2T_LOSS_WEIGHT", 1.0,
        "Weight of the image-to-text loss (images against the prompts of all identities) in stage 2; 0.0 is off.",
        at_least(0)),
    Key("MODEL.PROTOTYPE_LOSS_WEIGHT", 0.0,
        "Weight of the contrast of images with a prototype of each identity in stage 2 (PCL-CLIP; see MEMORY); 0.0 is "
        "off.", at_least(0)),
    Key("MODEL.CAMERA_PROXY_LOSS_WEIGHT", 0.0,
        "Weight of the contrast of images with a prototype of each identity in each camera in stage 2, where those of "
        "the own identity in other cameras are the positives (Wang et al., AAAI 2021; see MEMORY); 0.0 is off.",
        at_least(0)),
    Key("MODEL.IF_LABELSMOOTH", True, "Label smoothing of 0.1 in the identity and the image-to-text loss."),
    Key("MODEL.TRIPLET_FEATURES", "all",
        "Features with a triplet loss each, which are added: all (as CLIP-ReID: of the last two blocks, and projected) "
        "or last (as TransReID: of the last block).", one_of("all", "last")),
    Key("MODEL.NO_MARGIN", False, "Soft-margin triplet loss, log(1 + exp(.)), instead of SOLVER.MARGIN."),
    Key("MODEL.SSL_TYPE", "SIMCLR",
        "Vision self-supervision: SIMCLR or SIMSIAM. Language self-supervision is always SimCLR.", SSL_TYPES),
    Key("MODEL.SSL_HIDDEN", 4096, "Hidden width of the projection heads.", at_least(1)),
    Key("MODEL.SSL_OUT", 256, "Output width of the projection heads.", at_least(1)),

    Key("INPUT.SIZE_TRAIN", (384, 128), "Height and width of training images in pixels.", SIZE),
    Key("INPUT.SIZE_TEST", (384, 128), "Height and width of test images in pixels.", SIZE),
    Key("INPUT.PROB", 0.5, "Probability of a horizontal flip.", within(0, 1)),
    Key("INPUT.RE_PROB", 0.5,
        "Probability of random erasing, of training images and of the views of the vision self-supervision.",
        within(0, 1)),
    Key("INPUT.TWIN_ERASED_AREA", (0.33, 1 / 3),
        "Smallest and largest fraction of a view's area that random erasing takes. Published: always a third.", ERASED),
    Key("INPUT.GREY_PROB", 0.0, "Probability that a visible training image becomes grey.", within(0, 1)),
    Key("INPUT.JPEG_PROB", 0.0,
        "Probability of JPEG compression as an augmentation, of training images and views; 0.0 is off.", within(0, 1)),
    Key("INPUT.JPEG_QUALITY", (20, 90), "Smallest and largest quality of that compression, 1 to 100.", QUALITIES),
    Key("INPUT.PADDING", 10, "Black border in pixels around an image before the random crop.", at_least(0)),
    Key("INPUT.PIXEL_MEAN", (),
        "Mean of the three channels, of pixels in 0..1; () is the tower's own: of a timm tower what its weights were "
        "trained with, else ImageNet's, (0.485, 0.456, 0.406).", CHANNELS),
    Key("INPUT.PIXEL_STD", (),
        "Standard deviation of the three channels; () is the tower's own, as for the mean. ImageNet's is (0.229, "
        "0.224, 0.225).", DEVIATIONS),

    Key("DATASETS.NAMES", "market1501",
        "market1501, dukemtmc, msmt17, occ_duke, veri, VehicleID, sysu_mm01 and regdb (visible and infrared images), "
        "folder (your own images, at ROOT_DIR), or rendered below ROOT_DIR: synthetic (people), synthetic_occluded "
        "(the same with occluded queries), synthetic_vehicle, synthetic_sysu, synthetic_regdb (blocks in visible and "
        "infrared images), synthetic_sysu_inverted (a control). Several in a tuple are trained on together and tested "
        "one by one.",
        given("the name of a data set, e.g. market1501")),
    Key("DATASETS.ROOT_DIR", "data", "Folder that holds the data sets' folders.", None, ALWAYS),
    Key("DATASETS.MSMT17_VAL", True, "msmt17: trains on its validation list, too, as is usual."),
    Key("DATASETS.VEHICLEID_SIZE", "small",
        "VehicleID: the test list, small (800 identities), medium (1600) or large (2400).",
        one_of("small", "medium", "large")),
    Key("DATASETS.SYSU_MODE", "all",
        "sysu_mm01: the search, all or indoor, which leaves the outdoor cameras out of the gallery.",
        one_of("all", "indoor")),
    Key("DATASETS.REGDB_SPLIT", 1, "regdb: which of its ten splits is trained and tested on.", within(1, 10)),
    Key("DATASETS.VIEWPOINTS_TRAIN", "",
        "veri: the file of viewpoints keypoint_train.txt. Without it MODEL.SIE_VIEW must be off.", None, ALWAYS),
    Key("DATASETS.VIEWPOINTS_TEST", "", "veri: the file of viewpoints keypoint_test.txt.", None, ALWAYS),
    Key("DATASETS.NOUN", "person", "folder: what the images show, for the prompt.",
        matching(r"[A-Za-z][A-Za-z -]*", "an English word, e.g. person, vehicle or dog")),
    Key("DATASETS.HOLD_OUT", 0.0,
        "Fraction of the training identities to evaluate on instead of the test split, for choosing settings without "
        "test identities. The same identities for every SOLVER.SEED. 0.0 is off.", FRACTION),
    Key("DATASETS.SYNTHETIC.TRAIN_IDENTITIES", 256,
        "Rendered data sets (another value renders anew): people or vehicles to train on.", at_least(2)),
    Key("DATASETS.SYNTHETIC.TRAIN_IMAGES", 6, "Rendered data sets: images per training identity.", at_least(1)),
    Key("DATASETS.SYNTHETIC.TEST_IDENTITIES", 64, "Rendered data sets: other people or vehicles to test on.",
        at_least(1)),
    Key("DATASETS.SYNTHETIC.TEST_IMAGES", 12, "Rendered data sets: images per test identity, query and gallery.",
        at_least(6)),
    Key("DATASETS.SYNTHETIC.DIFFICULTY", 1.7,
        "Rendered data sets: how far the six cameras differ in light, colour, sharpness and viewpoint. 0.0 is not at "
        "all, 1.1 is what the tiny CLIP was pre-trained with; above 2 a camera may show hardly anything.", at_least(0)),
    Key("DATASETS.SYNTHETIC.SEED", 0,
        "Rendered data sets: the renderer's seed. It does not follow SOLVER.SEED, so that runs share their images.",
        SEEDS),

    Key("DATALOADER.NUM_WORKERS", 8,
        "Processes that read and transform images, at most one per core; 0: the training process does. Affects speed "
        "only.", at_least(0), ALWAYS),
    Key("DATALOADER.CACHE", "auto",
        "Where training images are kept, decoded and resized, from one epoch to the next, at 98 kB an image of 256 x "
        "128: ram (shared by all processes, until the program ends), disk (a file in CACHE_DIR that later runs use, "
        "too), off, or auto: ram if that takes up to half of the available memory, else off. Affects speed and memory "
        "only.", one_of("auto", "ram", "disk", "off"), ALWAYS),
    Key("DATALOADER.CACHE_DIR", "~/.cache/svllreid", "Folder for the files of CACHE disk; nobody deletes them.", None,
        ALWAYS),
    Key("DATALOADER.NUM_INSTANCE", 16, "Images per identity in a batch of stage 2 (K of P x K).", at_least(1)),

    Key("SOLVER.SEED", 1234, "Seed of every random draw in training.", SEEDS),
    Key("SOLVER.MARGIN", 0.3, "Margin of the triplet loss.", at_least(0)),
    Key("SOLVER.PRECISION", "auto",
        "Precision of the towers: fp32, bf16 or fp16 (autocast; fp16 scales the loss and skips updates that overflow), "
        "or auto: bf16 on CUDA devices that have it, else fp32. Losses and weights are always fp32.",
        one_of("auto", "fp32", "bf16", "fp16")),
    Key("SOLVER.TF32", False,
        "CUDA: training rounds the factors of fp32 products and convolutions to TF32, but for those of losses. Of use "
        "with SOLVER.PRECISION fp32; tests and cached features have TEST.PRECISION."),
    Key("SOLVER.COMPILE", False,
        "Training compiles the towers (torch.compile), which takes minutes at first, needs a C++ compiler and moves "
        "numbers by rounding; tests and cached features do without."),
    Key("SOLVER.CLIP_GRAD_NORM", 0.0, "Largest norm of the gradient of all parameters; 0.0 is off.", at_least(0)),
    Key("SOLVER.DETERMINISTIC", False,
        "CUDA: only algorithms that give the same bits every time, which is slower. A CPU always does."),
    Key("SOLVER.SYNC_BN", False,
        "CUDA with several processes: batch norm inside a ResNet sees the batches of all processes."),
    Key("SOLVER.CHECKPOINT_MINUTES", 10.0,
        "Minutes between resume states, besides those after every epoch that is saved or evaluated; 0.0: only those.",
        at_least(0), ALWAYS),

    # The clustering stage needs no identities (CCLNet): it trains on clusters, which are found anew in every epoch.
    Key("SOLVER.CLUSTER.IMS_PER_BATCH", 64,
        "Images of each modality in a batch, P x K: a multiple of DATALOADER.NUM_INSTANCE.", at_least(2)),
    Key("SOLVER.CLUSTER.OPTIMIZER_NAME", "Adam", "Optimizer.", OPTIMIZERS),
    Key("SOLVER.CLUSTER.MOMENTUM", 0.9, "Momentum of SGD; the other optimizers do not use it.", within(0, 1)),
    Key("SOLVER.CLUSTER.MAX_EPOCHS", 120, "Epochs, each with clusters of its own.", at_least(1), UNTIL_OVER),
    Key("SOLVER.CLUSTER.BASE_LR", 3.5e-4, "Learning rate after warm-up.", above(0)),
    Key("SOLVER.CLUSTER.BIAS_LR_FACTOR", 2.0, "Factor of the learning rate of every bias.", at_least(0)),
    Key("SOLVER.CLUSTER.WEIGHT_DECAY", 5e-4, "Weight decay: L2 in Adam and SGD, decoupled in AdamW.", at_least(0)),
    Key("SOLVER.CLUSTER.WEIGHT_DECAY_BIAS", 5e-4, "Weight decay of every bias.", at_least(0)),
    Key("SOLVER.CLUSTER.STEPS", (30, 50), "Epochs at which the learning rate is multiplied by GAMMA.", ASCENDING),
    Key("SOLVER.CLUSTER.GAMMA", 0.1, "Factor of the learning rate at each of STEPS.", above(0)),
    Key("SOLVER.CLUSTER.WARMUP_FACTOR", 0.01, "Warm-up starts at this fraction of BASE_LR.", within(0, 1)),
    Key("SOLVER.CLUSTER.WARMUP_ITERS", 10, "Epochs of linear warm-up.", at_least(0)),
    Key("SOLVER.CLUSTER.RESTART", True,
        "The stage behind it begins with the image tower that the run began with, as published: only the clusters are "
        "handed over."),
    Key("SOLVER.CLUSTER.CHECKPOINT_PERIOD", 10, "Epochs between checkpoints; the last epoch is always saved.",
        at_least(1), ALWAYS),
    Key("SOLVER.CLUSTER.LOG_PERIOD", 100, "Steps between lines of the log.", at_least(1), ALWAYS),
    Key("SOLVER.CLUSTER.EVAL_PERIOD", 10, "Epochs between evaluations, for the log only.", at_least(1), ALWAYS),

    # Stage 1 learns a prompt per identity.
    Key("SOLVER.STAGE1.IMS_PER_BATCH", 64, "Images (their cached features) in a batch.", at_least(1)),
    Key("SOLVER.STAGE1.OPTIMIZER_NAME", "Adam", "Optimizer.", OPTIMIZERS),
    Key("SOLVER.STAGE1.MOMENTUM", 0.9, "Momentum of SGD; the other optimizers do not use it.", within(0, 1)),
    Key("SOLVER.STAGE1.MAX_EPOCHS", 100, "Epochs: passes over all training images.", at_least(1), UNTIL_OVER),
    Key("SOLVER.STAGE1.BASE_LR", 3e-4, "Learning rate after warm-up.", above(0)),
    Key("SOLVER.STAGE1.WEIGHT_DECAY", 5e-4, "Weight decay: L2 in Adam and SGD, decoupled in AdamW.", at_least(0)),
    Key("SOLVER.STAGE1.WARMUP_EPOCHS", 5, "Epochs of linear warm-up, before the cosine.", at_least(0)),
    Key("SOLVER.STAGE1.WARMUP_LR_INIT", 0.01,
        "Learning rate at the start of warm-up. (The published default, 33 times BASE_LR; every published file sets "
        "1e-5.)", at_least(0)),
    Key("SOLVER.STAGE1.LR_MIN", 1.6e-5, "Learning rate at the end of the cosine. (Every published file sets 1e-6.)",
        at_least(0)),
    Key("SOLVER.STAGE1.SSL_LOSS_WEIGHT", 2.0,
        "Weight of the language self-supervision; 0.0 is off. (The published files set 0.8 for people and VehicleID, "
        "2.0 for VeRi.)", at_least(0)),
    Key("SOLVER.STAGE1.TRAIN_PROJECTOR", False,
        "Trains the projection head of the language self-supervision. Published: it keeps its random weights."),
    Key("SOLVER.STAGE1.PROMPT_AUG_METHOD", "mask",
        "Augmentation of the two views of a prompt: mask (numbers to zero), swap (positions) or mix (with another "
        "prompt).", one_of("mask", "swap", "mix")),
    Key("SOLVER.STAGE1.PROMPT_AUG_SCALE", 0.5,
        "Strength of that augmentation: fraction of numbers, fraction of positions, or weight of the other prompt.",
        within(0, 1)),
    Key("SOLVER.STAGE1.PROMPT_AUG_TOKENS", "all",
        "Tokens that are augmented: all (published: the whole context, start, end and padding included) or words (only "
        "those between start and end).", one_of("all", "words")),
    Key("SOLVER.STAGE1.CHECKPOINT_PERIOD", 10, "Epochs between checkpoints; the last epoch is always saved.",
        at_least(1), ALWAYS),
    Key("SOLVER.STAGE1.LOG_PERIOD", 100, "Steps between lines of the log.", at_least(1), ALWAYS),

    # Stage 2 fine-tunes the image tower. (Of a single image, batch norm has no statistics.)
    Key("SOLVER.STAGE2.IMS_PER_BATCH", 64, "Images in a batch, P x K: a multiple of DATALOADER.NUM_INSTANCE.",
        at_least(2)),
    Key("SOLVER.STAGE2.MINI_BATCH", 0,
        "Images that a process puts through the image tower at once, for batches that do not fit into its memory. "
        "Losses and gradients are those of the whole batch, but for batch norm; the tower computes a third more "
        "(GradCache: Gao et al., 2021). 0 is all.", at_least(0)),
    Key("SOLVER.STAGE2.GRAD_CHECKPOINTING", False,
        "Gradient checkpointing of the image tower: its blocks keep less and compute a third more. Affects speed and "
        "memory only.", None, ALWAYS),
    Key("SOLVER.STAGE2.OPTIMIZER_NAME", "Adam", "Optimizer.", OPTIMIZERS),
    Key("SOLVER.STAGE2.MOMENTUM", 0.9, "Momentum of SGD; the other optimizers do not use it.", within(0, 1)),
    Key("SOLVER.STAGE2.MAX_EPOCHS", 100,
        "Epochs: passes over the batches that the identity sampler draws from all training images.",
        at_least(1), UNTIL_OVER),
    Key("SOLVER.STAGE2.ITERS_PER_EPOCH", 0,
        "Batches in an epoch, for which the sampler passes over the images again where a pass has fewer. 0: one pass.",
        at_least(0)),
    Key("SOLVER.STAGE2.BASE_LR", 3e-4, "Learning rate after warm-up.", above(0)),
    Key("SOLVER.STAGE2.BIAS_LR_FACTOR", 1.0, "Factor of the learning rate of every bias.", at_least(0)),
    Key("SOLVER.STAGE2.LARGE_FC_LR", False, "Doubles the learning rate of the identity classifiers."),
    Key("SOLVER.STAGE2.LAYER_DECAY", 1.0,
        "Layer-wise learning rate decay (BEiT): factor of the learning rate from each block of the image tower to the "
        "one before it; heads have the whole rate. 1.0 is off.",
        Rule(lambda value: 0 < value <= 1, "above 0, up to 1")),
    Key("SOLVER.STAGE2.WEIGHT_DECAY", 5e-4, "Weight decay: L2 in Adam and SGD, decoupled in AdamW.", at_least(0)),
    Key("SOLVER.STAGE2.WEIGHT_DECAY_BIAS", 5e-4, "Weight decay of every bias.", at_least(0)),
    Key("SOLVER.STAGE2.SCHEDULE", "steps",
        "Learning rate after warm-up: steps (as CLIP-ReID: falls at STEPS by GAMMA) or cosine (as TransReID: falls to "
        "LR_MIN_FACTOR of BASE_LR in the last epoch).", one_of("steps", "cosine")),
    Key("SOLVER.STAGE2.STEPS", (40, 70), "Epochs at which the learning rate is multiplied by GAMMA.", ASCENDING),
    Key("SOLVER.STAGE2.GAMMA", 0.1, "Factor of the learning rate at each of STEPS.", above(0)),
    Key("SOLVER.STAGE2.LR_MIN_FACTOR", 0.002, "The cosine ends at this fraction of BASE_LR.", within(0, 1)),
    Key("SOLVER.STAGE2.WARMUP_FACTOR", 0.01, "Warm-up starts at this fraction of BASE_LR.", within(0, 1)),
    Key("SOLVER.STAGE2.WARMUP_ITERS", 500,
        "*Epochs* of linear warm-up, whatever the published name says. (The published default, longer than any "
        "training; every published file sets 10.)", at_least(0)),
    Key("SOLVER.STAGE2.EMA", 0.0,
        "Decay of an exponential moving average of the weights, e.g. 0.9998. Checkpoints and evaluations have the "
        "average, resume states both. 0.0 is off.", FRACTION),
    Key("SOLVER.STAGE2.SSL_LOSS_WEIGHT", 0.8, "Weight of the vision self-supervision; 0.0 is off and loads no views.",
        at_least(0)),
    Key("SOLVER.STAGE2.SSL_IGNORE_SAME_IDENTITY", False,
        "Other images of the same identity are no negatives (SIMCLR only). Published: they are. Where SSL_POSITIVES "
        "makes them positives: these do not compete with each other."),
    Key("SOLVER.STAGE2.SSL_POSITIVES", "image",
        "Positives of a view in the vision self-supervision: image (published: the other view of the image), identity "
        "(all other views of the identity in the batch, averaged) or camera (those from other cameras; where an "
        "identity has none, as identity).",
        one_of("image", "identity", "camera")),
    Key("SOLVER.STAGE2.CHECKPOINT_PERIOD", 10, "Epochs between checkpoints; the last epoch is always saved.",
        at_least(1), ALWAYS),
    Key("SOLVER.STAGE2.LOG_PERIOD", 100, "Steps between lines of the log.", at_least(1), ALWAYS),
    Key("SOLVER.STAGE2.EVAL_PERIOD", 10, "Epochs between evaluations, for the log only.", at_least(1), ALWAYS),

    Key("CLUSTER.EPS", 0.6, "DBSCAN: the largest Jaccard distance of neighbours.",
        Rule(lambda value: 1e-6 <= value < 1, "from 1e-6 (below, floats round) to below 1")),
    Key("CLUSTER.MIN_SAMPLES", 4, "DBSCAN: neighbours, itself included, that make an image the core of a cluster.",
        at_least(1)),
    Key("CLUSTER.K1", 30, "k-reciprocal Jaccard distance: neighbours that must find each other.", at_least(1)),
    Key("CLUSTER.K2", 6, "k-reciprocal Jaccard distance: neighbours whose neighbourhoods are averaged.", at_least(1)),
    Key("MEMORY.TEMP", 0.05,
        "Temperature of the contrast of images with prototypes: of clusters, or of identities "
        "(MODEL.PROTOTYPE_LOSS_WEIGHT).", above(0)),
    Key("MEMORY.MOMENTUM", 0.1,
        "Share of such a prototype that stays when an image of its cluster or identity is taken into it. (PCL-CLIP: "
        "0.2.)", within(0, 1)),
    Key("MEMORY.CAMERA_TEMP", 0.07,
        "The same temperature for prototypes of identities in cameras (MODEL.CAMERA_PROXY_LOSS_WEIGHT).", above(0)),
    Key("MEMORY.CAMERA_MOMENTUM", 0.2, "The same share for these.", within(0, 1)),
    Key("MEMORY.CAMERA_NEGATIVES", 50, "How many of these of other identities, the most similar, are negatives.",
        at_least(1)),
    Key("MEMORY.SWAP_MODE", "reference",
        "What matched clusters of two modalities do to each other's memories: reference (published code: after every "
        "step those in the batch become a mixture, nearly their partner), true (the paper: exchanged once an epoch, "
        "before training) or none.", one_of("reference", "true", "none")),
    Key("MEMORY.SWAP_START", 61, "First epoch of that.", at_least(1)),
    Key("MEMORY.SWAP_RATIO", 0.1, "Share of a memory that stays in the mixture of reference.", within(0, 1)),

    Key("TEST.IMS_PER_BATCH", 128,
        "Images in a batch of evaluation and of the features of stage 1. Affects speed and memory only.",
        at_least(1), ALWAYS),
    Key("TEST.WEIGHT", "", "Checkpoint that test_svllreid.py evaluates.", None, ALWAYS),
    Key("TEST.NECK_FEAT", "after", "Features before or after the batch-norm necks.", one_of("before", "after")),
    Key("TEST.PROTOCOL", "cross-camera",
        "Pairs that count: cross-camera (a query ignores its own identity in its own camera; VehicleID, which has no "
        "cameras, ignores nothing) or all, e.g. where your own images have no cameras. Holds for the data sets of a "
        "training; another one is tested across cameras unless the command line says otherwise.",
        one_of("cross-camera", "all")),
    Key("TEST.OTHER_SPLIT", False,
        "regdb: allows testing a network, or training on from it (MODEL.INIT_FROM), on another split than it was "
        "trained on, of which it knows identities."),
    Key("TEST.SIE", "auto",
        "Side information at test: same (cameras and viewpoints as in training), mean (of all in training), none, or "
        "auto: same on the data set of the training, else mean (published files, which do not say theirs: same if the "
        "numbers of cameras and viewpoints agree).", one_of("auto", "same", "mean", "none")),
    Key("TEST.FEAT_NORM", True, "Normalises features to length 1 before they are compared."),
    Key("TEST.PRECISION", "fp32",
        "Precision of the towers at test and for the cached features of stage 1: fp32, bf16 (autocast) or, on CUDA "
        "devices, tf32. Tables and results.json say what is not fp32; features are compared in fp32.",
        one_of("fp32", "bf16", "tf32")),
    Key("TEST.FLIP", False,
        "Features are the mean over an image and its mirror image, taken before they are normalised."),
    Key("TEST.AQE", False,
        "Alpha query expansion (Radenovic et al., 2019): a query's feature becomes the mean, weighted by "
        "similarity^alpha, of itself and its nearest gallery features. Comes before re-ranking."),
    Key("TEST.AQE_K", 5, "Query expansion: nearest gallery images that are added to a query.", at_least(1)),
    Key("TEST.AQE_ALPHA", 3.0, "Query expansion: exponent of the similarities; 0 weighs all alike.", at_least(0)),
    Key("TEST.RE_RANKING", False,
        "Re-ranking by k-reciprocal neighbours (Zhong et al., 2017). Published programs have the key but never read "
        "it."),
    Key("TEST.RE_RANKING_K1", 50, "Re-ranking: neighbours that must find each other.", at_least(1)),
    Key("TEST.RE_RANKING_K2", 15, "Re-ranking: neighbours whose neighbourhoods are averaged.", at_least(1)),
    Key("TEST.RE_RANKING_LAMBDA", 0.3, "Re-ranking: weight of the original distance.", within(0, 1)),

    Key("PROCESSOR.STAGES", USUAL,
        "Stages to run, in this order, each also several times: "
        + ", ".join(f"{stage.name}, {stage.title}" for stage in STAGES.values()) + ".",
        ORDER),
    Key("PROCESSOR.UNTRAINED_PROMPTS", False,
        "Allows an image-to-text loss in stage 2 with prompts that neither stage 1 nor MODEL.INIT_FROM has trained."),
    Key("RESUME", True,
        "Resumes an unfinished run in the same OUTPUT_DIR from its last state; False refuses such a folder.",
        None, ALWAYS),
    Key("OUTPUT_DIR", "",
        "Folder for everything that is written. Empty: training uses runs/DATASET_CONFIGFILE_seedSEED, testing the "
        "checkpoint's folder.", None, ALWAYS),
)
# fmt: on
KEYS = {row.name: row for row in ROWS}
BLOCKS = {name[:end] for name in KEYS for end, letter in enumerate(name) if letter == "."}


def defaults() -> CfgNode:
    """A fresh configuration, changeable, with its keys in the order of the rows."""
    cfg = CfgNode()
    for row in ROWS:
        *blocks, leaf = row.name.split(".")
        node = cfg
        for block in blocks:
            node = node.setdefault(block, CfgNode())
        node[leaf] = row.default
    return cfg
