"""The words that a configuration may use as values: ours, and those of the 1.x files that people bring along."""

from __future__ import annotations

from collections.abc import Mapping

from distune.config.job import Approach

FRAMEWORKS: Mapping[str, tuple[str, str]] = {
    "onnxruntime": ("onnxruntime", "QDQ"),
    "onnxrt": ("onnxruntime", "QDQ"),
    "onnxrt_qdq": ("onnxruntime", "QDQ"),
    "onnxrt_integerops": ("onnxruntime", "QDQ"),
    "onnxrt_qlinearops": ("onnxruntime", "QOperator"),
    "onnxrt_qoperator": ("onnxruntime", "QOperator"),
    "pytorch": ("pytorch", "default"),
    "pytorch_fx": ("pytorch", "default"),
    "pytorch_ipex": ("pytorch", "default"),
}
"""``(backend, quant_format)`` by the framework that is written."""

DYNAMIC_FRAMEWORK = "onnxrt_integerops"
"""The 1.x framework that implies dynamic quantization."""

FOREIGN_FRAMEWORKS: Mapping[str, str] = {
    "tensorflow": "tf2onnx",
    "tensorflow_itex": "tf2onnx",
    "keras": "tf2onnx",
    "mxnet": "mxnet.onnx.export_model",
}
"""Frameworks of 1.x that distune does not run, and what exports them to ONNX."""

APPROACHES: Mapping[str, Approach] = {
    "post_training_static_quant": "static",
    "post_training_dynamic_quant": "dynamic",
    "post_training_auto_quant": "auto",
    "static": "static",
    "dynamic": "dynamic",
    "auto": "auto",
    "weight_only": "weight_only",
    "quant_aware_training": "qat",
    "qat": "qat",
}

QUANT_LEVELS: Mapping[str, int | str] = {"auto": "auto", "0": 0, "O0": 0, "1": 1, "O1": 1}

DTYPES = ("int8", "uint8", "int16", "uint16", "int4", "uint4", "int", "fp32", "bf16", "fp16")
SCHEMES = ("sym", "asym")
GRANULARITIES = ("per_tensor", "per_channel")
ALGORITHMS = ("minmax", "moving_average", "kl", "percentile", "RTN", "GPTQ", "AWQ", "HQQ")

SIGOPT_KEYS = ("sigopt_api_token", "sigopt_project_id", "sigopt_experiment_name")

BOOLEAN_RECIPES = (
    "smooth_quant",
    "fast_bias_correction",
    "weight_correction",
    "gemm_to_matmul",
    "layer_wise_quant",
    "first_conv_or_matmul_quantization",
    "last_conv_or_matmul_quantization",
    "pre_post_process_quantization",
    "add_qdq_pair_to_weight",
    "dedicated_qdq_pair",
    "scale_propagation_max_pooling",
    "scale_propagation_concat",
    "cross_layer_equalization",
    "adaround",
)
ON_BY_DEFAULT = (
    "gemm_to_matmul",
    "first_conv_or_matmul_quantization",
    "last_conv_or_matmul_quantization",
    "pre_post_process_quantization",
    "scale_propagation_max_pooling",
    "scale_propagation_concat",
)
"""Recipes that INC has on by default, 1.x's of TensorFlow graphs included."""
ARGUMENT_RECIPES = (
    "smooth_quant_args",
    "layer_wise_quant_args",
    "rtn_args",
    "awq_args",
    "gptq_args",
    "teq_args",
    "autoround_args",
)
GRAPH_LEVELS = ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL")
WEIGHT_ONLY_RECIPES = ("weight_only_storage", "accuracy_level")
"""Recipes of approach weight_only that INC has not, or has among the arguments of an algorithm."""

RECIPES = frozenset(
    (
        *BOOLEAN_RECIPES,
        *ARGUMENT_RECIPES,
        *WEIGHT_ONLY_RECIPES,
        "graph_optimization_level",
        "optypes_to_exclude_output_quant",
    )
)

RECIPE_MEANINGS: Mapping[str, str] = {
    "smooth_quant": "Move outliers of activations into the weights of matrix products; how far is the alpha of "
    "`smooth_quant_args`.",
    "smooth_quant_args": "`alpha` (0 to 1, `auto`, or a list, which is tuned over), `folding`, `auto_alpha_args`.",
    "fast_bias_correction": "Take the mean error that quantized weights bring to the outputs off the biases.",
    "weight_correction": "Give each output channel of a quantized weight the mean and variance of the fp32 one.",
    "cross_layer_equalization": "Rescale the channels between two layers so that both have weights of like ranges.",
    "adaround": "Round each weight up or down by the layer's output error instead of to nearest.",
    "first_conv_or_matmul_quantization": "False keeps the first convolution or matrix product in fp32.",
    "last_conv_or_matmul_quantization": "False keeps the last convolution or matrix product in fp32.",
    "pre_post_process_quantization": "False keeps what lies before the first and behind the last convolution or matrix "
    "product in fp32.",
    "graph_optimization_level": f"ONNX Runtime's optimization of the graph before quantization: one of "
    f"{', '.join(GRAPH_LEVELS)}; ENABLE_BASIC if nothing is said. Fusions that have no integer kernel are left out at "
    f"every level.",
    "gemm_to_matmul": "Gemm becomes MatMul and Add before quantization; otherwise it runs as QGemm, which is faster.",
    "add_qdq_pair_to_weight": "Store weights in fp32 with QuantizeLinear and DequantizeLinear behind them.",
    "dedicated_qdq_pair": "Give every op that reads a tensor a QuantizeLinear and DequantizeLinear of its own.",
    "optypes_to_exclude_output_quant": "Op types whose outputs are not quantized.",
    "layer_wise_quant": "Calibrate few tensors at a time, over more runs of the model: less memory, the same "
    "statistics. PyTorch models are always calibrated so.",
    "scale_propagation_max_pooling": "MaxPool passes the scale of its input on; false: it runs in fp32 and its output "
    "has its own scale.",
    "scale_propagation_concat": "The inputs of Concat take the scale of its output, so that it only copies.",
    "weight_only_storage": "ONNX, for widths that MatMulNBits does not run: `native` (not offered), `wider` (in the "
    "next width that runs) or `dequantized` (as fp32). PyTorch: `packed` (in their own width, made float at every "
    "call), `native` (for ATen's integer kernels) or `dequantized`.",
    "accuracy_level": "ONNX, weight-only: 4 rounds the inputs of MatMulNBits to int8, which is faster.",
    "rtn_args": "Weight-only by rounding to nearest: `enable_mse_search`.",
    "gptq_args": "Weight-only by GPTQ: `percdamp`, `blocksize`, `actorder`, `mse`.",
    "awq_args": "Weight-only by AWQ: `enable_auto_scale`, `enable_mse_search`, `grid`.",
}
"""What each recipe that distune has does."""

STRATEGIES = frozenset(
    (
        "auto",
        "basic",
        "bayesian",
        "conservative",
        "exhaustive",
        "hawq_v2",
        "knapsack",
        "mse",
        "mse_v2",
        "random",
        "sigopt",
        "tpe",
    )
)

TENSORFLOW_DATASETS = frozenset(
    ("TFRecordDataset", "ImageRecord", "VOCRecord", "COCORecord", "mzbert", "sparse_dummy_v2", "style_transfer")
)
"""Datasets of 1.x that need TensorFlow's readers."""

DATASETS = TENSORFLOW_DATASETS | frozenset(
    [
        "CIFAR10",
        "CIFAR100",
        "MNIST",
        "FashionMNIST",
        "ImageFolder",
        "ImagenetRaw",
        "Imagenet",
        "COCORaw",
        "COCONpy",
        "bert",
        "GLUE",
        "dummy",
        "dummy_v2",
    ]
)
TRANSFORMS = frozenset(
    [
        "Resize",
        "CenterCrop",
        "RandomCrop",
        "RandomResizedCrop",
        "Normalize",
        "Transpose",
        "Rescale",
        "Cast",
        "CropToBoundingBox",
        "CropResize",
        "ToTensor",
        "ToPILImage",
        "ToArray",
        "ToNDArray",
        "Pad",
        "ColorJitter",
        "RandomHorizontalFlip",
        "RandomVerticalFlip",
        "ResizeWithRatio",
        "ResizeCropImagenet",
        "BilinearImagenet",
        "PaddedCenterCrop",
        "AlignImageChannel",
        "ParseDecodeImagenet",
        "ParseDecodeCoco",
        "ParseDecodeVoc",
        "QuantizedInput",
        "LabelShift",
        "Collect",
        "SquadV1",
        "SquadV1ModelZoo",
    ]
)
METRICS = frozenset(
    [
        "topk",
        "mAP",
        "COCOmAP",
        "COCOmAPv2",
        "VOCmAP",
        "SquadF1",
        "MSE",
        "RMSE",
        "MAE",
        "Accuracy",
        "Loss",
        "BLEU",
        "F1",
        "mIOU",
        "GLUE",
        "ROC",
    ]
)
FILTERS = frozenset(("LabelBalance",))

_ADAM = frozenset(("lr", "betas", "eps", "weight_decay", "amsgrad"))
OPTIMIZERS: Mapping[str, frozenset[str]] = {
    "SGD": frozenset(("lr", "momentum", "dampening", "weight_decay", "nesterov")),
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "RMSprop": frozenset(("lr", "alpha", "eps", "weight_decay", "momentum", "centered")),
}
"""Optimizers of quantization-aware training with their arguments, by the names of ``torch.optim``."""

CRITERIA: Mapping[str, frozenset[str]] = {
    "CrossEntropyLoss": frozenset(("reduction", "label_smoothing", "ignore_index")),
    "MSELoss": frozenset(("reduction",)),
    "L1Loss": frozenset(("reduction",)),
    "BCEWithLogitsLoss": frozenset(("reduction",)),
    "KnowledgeDistillationLoss": frozenset(("temperature", "loss_weights")),
}
"""Losses of quantization-aware training with their arguments, by the names of ``torch.nn``; the last one is ours."""

PATH_ARGUMENTS = frozenset(
    [
        "root",
        "path",
        "data_path",
        "image_list",
        "label_file",
        "vocab_file",
        "data_dir",
        "anno_path",
        "anno_dir",
        "img_dir",
        "filename",
        "file",
        "folder",
    ]
)
"""Arguments of a component that name a file or folder."""
