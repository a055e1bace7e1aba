"""Every configuration key once: its default, its meaning, its unit, its choices.

Key names and defaults are those of the published programs wherever the meaning is the same; where a default differs,
the comment says why. What becomes of published keys that are not here is in `configs/published.py`. A YAML file or the
command line may change a value, never its type (`configs.load` converts).
"""

from __future__ import annotations

from yacs.config import CfgNode as Node

from configs.stages import STAGES

_C = Node()

# ---------------------------------------------------------------------------------------------------------------- model
_C.MODEL = Node()
# Where everything runs: auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N, mps.
_C.MODEL.DEVICE = "auto"
# CLIP's architecture by open_clip's name (ViT-B-16, ViT-L-14, RN50, ...), or ViT-Tiny-8 (in this repository).
# (The published default, resnet50, is no name that the published programs know.)
_C.MODEL.NAME = "ViT-B-16"
# CLIP's weights: an open_clip tag (openai, laion2b_s34b_b88k, ...), a file, rendered (of ViT-Tiny-8), none (random).
_C.MODEL.PRETRAIN = "openai"
# A checkpoint, ours or a published CLIP-ReID or SVLL-ReID file, whose weights training starts from; empty for none.
_C.MODEL.INIT_FROM = ""
# quick_gelu, gelu, or auto: tags, OpenAI's archives and the tiny CLIP say it themselves; other files do not.
_C.MODEL.ACTIVATION = "auto"
# Patch stride (vertical, horizontal) in pixels; below the patch size, patches overlap ("OLP": 12 for patches of 16).
_C.MODEL.STRIDE_SIZE = (16, 16)
# Side information (SIE): a learnt vector for every camera, added to the class token.
_C.MODEL.SIE_CAMERA = False
# The same for every viewpoint of a vehicle; with both, for every pair of camera and viewpoint.
_C.MODEL.SIE_VIEW = False
# The factor of that vector.
_C.MODEL.SIE_COE = 3.0
# Whether the views of the vision self-supervision get that vector, too; published: no.
_C.MODEL.SIE_TWINS = False
# Weights of the image stage's terms; 0.0 is off. Here: classifying the identities.
_C.MODEL.ID_LOSS_WEIGHT = 1.0
# Triplets of images.
_C.MODEL.TRIPLET_LOSS_WEIGHT = 1.0
# Images against the sentences of all identities.
_C.MODEL.I2T_LOSS_WEIGHT = 1.0
# Label smoothing of 0.1 in the identity and the image-to-text term.
_C.MODEL.IF_LABELSMOOTH = True
# Triplet loss with log(1 + exp(.)) instead of the margin.
_C.MODEL.NO_MARGIN = False
# The vision self-supervision: SIMCLR or SIMSIAM; a weight of 0.0 switches it off. That of language is always SimCLR.
_C.MODEL.SSL_TYPE = "SIMCLR"
# Width of the hidden layers of the projection heads ...
_C.MODEL.SSL_HIDDEN = 4096
# ... and of what they return.
_C.MODEL.SSL_OUT = 256

# ---------------------------------------------------------------------------------------------------------------- input
_C.INPUT = Node()
# Height and width in pixels, for training ...
_C.INPUT.SIZE_TRAIN = (384, 128)
# ... and for testing.
_C.INPUT.SIZE_TEST = (384, 128)
# Probability of a horizontal flip.
_C.INPUT.PROB = 0.5
# Probability of random erasing, in the training images and in the views of the vision self-supervision alike.
_C.INPUT.RE_PROB = 0.5
# Smallest and largest share of a view's area that is erased, when something is; published: always a third.
_C.INPUT.TWIN_ERASED_AREA = (0.33, 1 / 3)
# Black border in pixels, from which the random crop is cut.
_C.INPUT.PADDING = 10
# Mean of the three channels, of pixels in 0..1 ...
_C.INPUT.PIXEL_MEAN = (0.485, 0.456, 0.406)
# ... and standard deviation.
_C.INPUT.PIXEL_STD = (0.229, 0.224, 0.225)

# ----------------------------------------------------------------------------------------------------------------- data
_C.DATASETS = Node()
# market1501, dukemtmc, msmt17, occ_duke, veri, VehicleID, folder (your own pictures, at ROOT_DIR), or rendered on the
# spot below ROOT_DIR: synthetic (people), synthetic_occluded (the same, but something hides a good part of everybody in
# the queries) or synthetic_vehicle. Several in a tuple: trained on together, identities and cameras numbered on from
# one to the next, and tested one by one.
_C.DATASETS.NAMES = "market1501"
# The folder that holds the data sets' folders.
_C.DATASETS.ROOT_DIR = "data"
# Of msmt17: its validation list is trained on, too, as is usual.
_C.DATASETS.MSMT17_VAL = True
# Of VehicleID: which test list, small (800 identities), medium (1600) or large (2400).
_C.DATASETS.VEHICLEID_SIZE = "small"
# Of veri (synthetic_vehicle has its own): the files of viewpoints, keypoint_train.txt ...
_C.DATASETS.VIEWPOINTS_TRAIN = ""
# ... and keypoint_test.txt; without them MODEL.SIE_VIEW must be off.
_C.DATASETS.VIEWPOINTS_TEST = ""
# Of folder: what is in the pictures, for the sentence.
_C.DATASETS.NOUN = "person"
# Share of the training identities that is not trained on but evaluated on, instead of the test split: for choosing
# settings without looking at test identities. The same identities for every SOLVER.SEED. 0.0 is off; below 1.
_C.DATASETS.HOLD_OUT = 0.0
# Of the rendered data sets, which share them; another value renders anew.
_C.DATASETS.SYNTHETIC = Node()
_C.DATASETS.SYNTHETIC.TRAIN_IDENTITIES = 256  # people or vehicles to learn from
_C.DATASETS.SYNTHETIC.TRAIN_IMAGES = 6  # of each identity
_C.DATASETS.SYNTHETIC.TEST_IDENTITIES = 64  # others, to be found again
_C.DATASETS.SYNTHETIC.TEST_IMAGES = 12  # of each identity, query and gallery together
# How far the six cameras differ in light, colour, sharpness and viewpoint: 0.0 is not at all, 1.1 what the tiny CLIP
# was pre-trained with; above 2 a camera may show hardly anything.
_C.DATASETS.SYNTHETIC.DIFFICULTY = 1.7
# Of the renderer; it does not follow SOLVER.SEED, so that seeds share their pictures.
_C.DATASETS.SYNTHETIC.SEED = 0

_C.DATALOADER = Node()
# Processes that read and transform images, at most one a core; 0 does it in the training process. Affects speed only.
_C.DATALOADER.NUM_WORKERS = 8
# Images of an identity in a batch of the image stage (K of P x K).
_C.DATALOADER.NUM_INSTANCE = 16

# --------------------------------------------------------------------------------------------------------------- solver
_C.SOLVER = Node()
# Of every random draw in training.
_C.SOLVER.SEED = 1234
# Margin of the triplet loss.
_C.SOLVER.MARGIN = 0.3
# Of the towers: fp32, bf16 or fp16 (autocast; fp16 scales the loss and skips updates that overflow), or auto: bf16 on
# CUDA devices that have it, else fp32. Losses and weights are always fp32.
_C.SOLVER.PRECISION = "auto"
# The gradient of all parameters together is shortened to this length; 0.0 is off.
_C.SOLVER.CLIP_GRAD_NORM = 0.0
# On CUDA: only algorithms that give the same bits every time; slower. A CPU always does.
_C.SOLVER.DETERMINISTIC = False
# On CUDA with several processes: batch norm inside a ResNet sees the batch of all of them.
_C.SOLVER.SYNC_BN = False
# A state to go on from is kept at least every so many minutes, besides the end of every epoch that is saved or
# evaluated; 0.0: only then.
_C.SOLVER.CHECKPOINT_MINUTES = 10.0

# The prompt stage: a sentence for every identity.
_C.SOLVER.STAGE1 = Node()
# Images (their cached features) in a batch.
_C.SOLVER.STAGE1.IMS_PER_BATCH = 64
# Adam, AdamW or SGD.
_C.SOLVER.STAGE1.OPTIMIZER_NAME = "Adam"
# SGD's; the others do not use it.
_C.SOLVER.STAGE1.MOMENTUM = 0.9
# Rounds over all training images.
_C.SOLVER.STAGE1.MAX_EPOCHS = 100
# The learning rate after warm-up.
_C.SOLVER.STAGE1.BASE_LR = 3e-4
# Coupled (L2) in Adam and SGD, decoupled in AdamW.
_C.SOLVER.STAGE1.WEIGHT_DECAY = 5e-4
# Epochs of linear warm-up, after which a cosine follows.
_C.SOLVER.STAGE1.WARMUP_EPOCHS = 5
# Where the warm-up starts. (The published default, 33 times BASE_LR; every published file sets 1e-5.)
_C.SOLVER.STAGE1.WARMUP_LR_INIT = 0.01
# Where the cosine ends. (Every published file sets 1e-6.)
_C.SOLVER.STAGE1.LR_MIN = 1.6e-5
# Weight of the language self-supervision; 0.0 is off. (The published files set 0.8 for people and VehicleID, 2.0 for
# VeRi.)
_C.SOLVER.STAGE1.SSL_LOSS_WEIGHT = 2.0
# Whether its projection head is trained with the prompts; published: it stays at its random start.
_C.SOLVER.STAGE1.TRAIN_PROJECTOR = False
# How its two copies of a prompt are disturbed: mask (numbers to zero), swap (positions), mix (with another prompt), ...
_C.SOLVER.STAGE1.PROMPT_AUG_METHOD = "mask"
# ... and how much, 0..1: share of numbers, share of positions, share of the other prompt.
_C.SOLVER.STAGE1.PROMPT_AUG_SCALE = 0.5
# Where: all (published: the whole context, start, end and padding included) or words (only between start and end).
_C.SOLVER.STAGE1.PROMPT_AUG_TOKENS = "all"
# Every so many epochs; a stage's last epoch is always saved.
_C.SOLVER.STAGE1.CHECKPOINT_PERIOD = 10
# Every so many steps.
_C.SOLVER.STAGE1.LOG_PERIOD = 100

# The image stage: the image tower.
_C.SOLVER.STAGE2 = Node()
# Images in a batch, P x K: a multiple of DATALOADER.NUM_INSTANCE.
_C.SOLVER.STAGE2.IMS_PER_BATCH = 64
# Adam, AdamW or SGD.
_C.SOLVER.STAGE2.OPTIMIZER_NAME = "Adam"
# SGD's; the others do not use it.
_C.SOLVER.STAGE2.MOMENTUM = 0.9
# Rounds over the batches that the identity sampler makes of all training images.
_C.SOLVER.STAGE2.MAX_EPOCHS = 100
# The learning rate after warm-up.
_C.SOLVER.STAGE2.BASE_LR = 3e-4
# Factor of the learning rate of every bias.
_C.SOLVER.STAGE2.BIAS_LR_FACTOR = 1.0
# Doubles the learning rate of the identity classifiers.
_C.SOLVER.STAGE2.LARGE_FC_LR = False
# Coupled (L2) in Adam and SGD, decoupled in AdamW.
_C.SOLVER.STAGE2.WEIGHT_DECAY = 5e-4
# The same, of every bias.
_C.SOLVER.STAGE2.WEIGHT_DECAY_BIAS = 5e-4
# The learning rate is multiplied by GAMMA at each of these epochs.
_C.SOLVER.STAGE2.STEPS = (40, 70)
# By how much.
_C.SOLVER.STAGE2.GAMMA = 0.1
# Linear warm-up from WARMUP_FACTOR * BASE_LR ...
_C.SOLVER.STAGE2.WARMUP_FACTOR = 0.01
# ... over this many *epochs*, whatever the published name says. (The published default, longer than any training; every
# published file sets 10.)
_C.SOLVER.STAGE2.WARMUP_ITERS = 500
# Weight of the vision self-supervision; 0.0 is off and loads no views.
_C.SOLVER.STAGE2.SSL_LOSS_WEIGHT = 0.8
# Leaves other images of the same identity out of its negatives (SIMCLR only); published: they are negatives.
_C.SOLVER.STAGE2.SSL_IGNORE_SAME_IDENTITY = False
# Every so many epochs; a stage's last epoch is always saved.
_C.SOLVER.STAGE2.CHECKPOINT_PERIOD = 10
# Every so many steps.
_C.SOLVER.STAGE2.LOG_PERIOD = 100
# Every so many epochs: evaluation, for the log only.
_C.SOLVER.STAGE2.EVAL_PERIOD = 10

# ----------------------------------------------------------------------------------------------------------------- test
_C.TEST = Node()
# Images in a batch of evaluation, and of the features of the prompt stage; affects speed and memory only.
_C.TEST.IMS_PER_BATCH = 128
# The checkpoint that test_svllreid.py evaluates.
_C.TEST.WEIGHT = ""
# Compare features before or after the batch-norm necks.
_C.TEST.NECK_FEAT = "after"
# Which pairs count: cross-camera (a query does not look for its own identity in its own camera; VehicleID, which has no
# cameras, leaves nothing out) or all, e.g. where your own pictures have no cameras. Holds for the data sets of a
# training; another one is tested across cameras unless the command line says otherwise.
_C.TEST.PROTOCOL = "cross-camera"
# Side information at test: same (cameras and viewpoints as in training), mean (over all that training knew), none, or
# auto: same on the data set of the training, else mean (published files, which do not say theirs: same if the numbers
# of cameras and viewpoints agree).
_C.TEST.SIE = "auto"
# Compare features of length 1.
_C.TEST.FEAT_NORM = True
# Re-rank by k-reciprocal neighbours (Zhong et al., 2017). The published programs have the key but never read it.
_C.TEST.RE_RANKING = False
# Neighbours that must find each other ...
_C.TEST.RE_RANKING_K1 = 50
# ... neighbours whose neighbourhoods are averaged ...
_C.TEST.RE_RANKING_K2 = 15
# ... and the share of the original distance, 0..1.
_C.TEST.RE_RANKING_LAMBDA = 0.3

# ------------------------------------------------------------------------------------------------------------------ run
_C.PROCESSOR = Node()
# What is run, in this order: prompt (stage 1), image (stage 2).
_C.PROCESSOR.STAGES = tuple(STAGES)
# Allows the image stage to compare images with sentences that nobody trained: no prompt stage, no MODEL.INIT_FROM.
_C.PROCESSOR.UNTRAINED_PROMPTS = False
# Goes on with an unfinished run in the same OUTPUT_DIR where its last state was kept; else such a folder is refused.
_C.RESUME = True
# Where everything is written. Empty: training runs/DATASET_CONFIGFILE_seedSEED, testing the checkpoint's folder.
_C.OUTPUT_DIR = ""


def defaults() -> Node:
    """A fresh, changeable copy."""
    return _C.clone()
