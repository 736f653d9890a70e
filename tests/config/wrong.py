"""Wrong configurations. ``▸`` stands before each place that must be pointed at; it is no part of the file."""

from __future__ import annotations

from typing import NamedTuple

MARK = "▸"


class Wrong(NamedTuple):
    """One file, and a part of the message of each problem, in the order of the file."""

    name: str
    text: str
    hints: tuple[str, ...]


HEAD = "model: {framework: onnxruntime, path: model.onnx}\nquantization: {approach: dynamic}\n"

DATA = """\
model: {framework: onnxruntime, path: model.onnx}
quantization:
  calibration:
    dataloader:
"""

CORPUS = [
    # Keys
    Wrong("unknown section", "▸tunning: {}", ("tunning: unknown key; did you mean 'tuning'?",)),
    Wrong(
        "unknown key",
        "tuning:\n  accuracy_criterion:\n    ▸relativ: 0.01",
        ("tuning.accuracy_criterion.relativ: unknown key; did you mean 'relative'?",),
    ),
    Wrong("key from afar", "tuning:\n  ▸zzz: 1", ("unknown key; known: accuracy_criterion,",)),
    Wrong(
        "unknown precision",
        "quantization:\n  excluded_precisions: [▸bf61]",
        ("did you mean 'bf16'",),
    ),
    Wrong(
        "key written twice",
        "tuning:\n  random_seed: 1\n  ▸random_seed: 2",
        ("tuning.random_seed: written twice, first at cfg.yaml:2:3",),
    ),
    Wrong("a key of a later form", "tuning:\n  ▸refine_everything: 3", ("unknown key",)),
    Wrong("pruning", "▸pruning: {}", ("does not do pruning; take this section out",)),
    Wrong(
        "training without the approach",
        "quantization:\n  ▸train: {train_func: json:loads}",
        ("training belongs to approach: quant_aware_training",),
    ),
    Wrong(
        "training without data",
        "quantization:\n  approach: quant_aware_training\n  ▸train: {optimizer: Adam}",
        ("training needs 'dataloader'",),
    ),
    Wrong(
        "an optimizer's argument",
        "quantization:\n  approach: quant_aware_training\n  train:\n"
        "    dataloader: {dataset: {dummy: {shape: [4, 2]}}}\n    optimizer: {SGD: {learning_rate: 1, ▸momentun: 0.9}}",
        ("optimizer SGD has no argument 'momentun'; did you mean 'momentum'?",),
    ),
    Wrong(
        "no epoch is left",
        "quantization:\n  approach: quant_aware_training\n  train:\n    end_epoch: ▸2\n    start_epoch: 2\n"
        "    dataloader: {dataset: {dummy: {shape: [4, 2]}}}\n    optimizer: Adam",
        ("no epoch is trained",),
    ),
    Wrong(
        "hostfile of a training",
        "quantization:\n  approach: quant_aware_training\n  train: {train_func: json:loads, ▸hostfile: hosts}",
        ("start distune under mpirun",),
    ),
    Wrong(
        "training of an ONNX model",
        "model: {framework: onnxruntime, path: model.onnx}\nquantization:\n  approach: ▸quant_aware_training\n"
        "  train: {train_func: json:loads}",
        ("needs an nn.Module",),
    ),
    Wrong("resume", "tuning:\n  workspace: {▸resume: here}", ("a run resumes by itself",)),
    Wrong(
        "folder as model",
        "model: {framework: onnxruntime, path: ▸.}\nquantization: {approach: dynamic}",
        ("is a folder; name the model file in it",),
    ),
    # Types
    Wrong("section is text", "tuning: ▸fast", ("tuning: expected keys and values, got 'fast'",)),
    Wrong("section is a list", "tuning:\n▸- a\n", ("expected keys and values, got a list",)),
    Wrong(
        "number is text",
        "tuning:\n  exit_policy:\n    timeout: ▸soon",
        ("tuning.exit_policy.timeout: expected a number, got 'soon'",),
    ),
    Wrong("nothing", "tuning:\n  random_seed:▸", ("expected a whole number, got nothing",)),
    Wrong("number is a switch", "tuning: {exit_policy: {max_trials: ▸true}}", ("expected a whole number, got true",)),
    Wrong("number with a point", "tuning: {exit_policy: {max_trials: ▸2.5}}", ("expected a whole number, got 2.5",)),
    Wrong("no trials", "tuning: {exit_policy: {max_trials: ▸0}}", ("expected a number of at least 1, got 0",)),
    Wrong("negative timeout", "tuning: {exit_policy: {timeout: ▸-1}}", ("expected a number of at least 0, got -1",)),
    Wrong("endless timeout", "tuning: {exit_policy: {timeout: ▸.inf}}", ("expected a finite number, got inf",)),
    Wrong("switch is text", "tuning: {tensorboard: ▸maybe}", ("expected true or false, got 'maybe'",)),
    Wrong("version", "version: ▸2.0", ("expected version 1.0",)),
    Wrong(
        "isolation", "tuning: {isolation: ▸proces}", ("one of process, none, got 'proces'; did you mean 'process'?",)
    ),
    Wrong("no time", "tuning: {limits: {deadline: ▸0}}", ("expected a number above 0, got 0",)),
    Wrong("no such limit", "tuning: {limits: {▸memorry: 1}}", ("did you mean 'memory'?",)),
    # Values
    Wrong("device", "device: ▸tpu", ("expected cpu, or gpu for PyTorch models, got 'tpu'",)),
    Wrong(
        "approach", "quantization: {approach: ▸post_training_static}", ("did you mean 'post_training_static_quant'",)
    ),
    Wrong("quant level", "quantization: {quant_level: ▸2}", ("2 is no quant_level; expected auto, 0, O0, 1, O1",)),
    Wrong(
        "dtype in a comma string",
        "quantization:\n  model_wise:\n    activation:\n      dtype: int8, ▸fp33",
        ("'fp33' is no dtype; did you mean 'fp32'?",),
    ),
    Wrong(
        "algorithm in a list",
        "quantization:\n  model_wise: {activation: {algorithm: [minmax, ▸kll]}}",
        ("quantization.model_wise.activation.algorithm.1: 'kll' is no algorithm; did you mean 'kl'?",),
    ),
    Wrong("scheme", "quantization: {model_wise: {weight: {scheme: ▸symm}}}", ("did you mean 'sym'?",)),
    Wrong("granularity", "quantization: {model_wise: {weight: {granularity: ▸perchannel}}}", ("'per_channel'?",)),
    Wrong(
        "pattern",
        "quantization:\n  op_wise:\n    ▸'conv(': {weight: {dtype: int8}}",
        ("'conv(' is not a regular expression",),
    ),
    Wrong("role", "quantization:\n  op_wise:\n    conv: {▸weights: {dtype: int8}}", ("did you mean 'weight'?",)),
    Wrong("rule without content", "quantization:\n  optype_wise:\n    ▸Conv: {}", ("this rule says nothing",)),
    Wrong(
        "recipe",
        "quantization:\n  recipes: {▸gemm_to_matmull: true}",
        ("unknown recipe; did you mean 'gemm_to_matmul'?",),
    ),
    Wrong("recipe's value", "quantization:\n  recipes: {gemm_to_matmul: ▸1}", ("expected true or false, got 1",)),
    Wrong("sampling size", "quantization: {calibration: {sampling_size: '100, ▸many'}}", ("got 'many'",)),
    Wrong("no samples", "quantization: {calibration: {sampling_size: [10, ▸0]}}", ("at least 1, got 0",)),
    Wrong(
        "samples and batches",
        "quantization: {calibration: {sampling_size: 10, ▸iterations: 1}}",
        ("'iterations' and 'sampling_size' exclude each other",),
    ),
    # Criterion, objective, strategy
    Wrong(
        "relative and absolute",
        "tuning:\n  accuracy_criterion:\n    relative: 0.01\n    ▸absolute: 0.01",
        ("'relative' and 'absolute' exclude each other; keep one",),
    ),
    Wrong("percent without %", "tuning: {accuracy_criterion: {relative: ▸1}}", ("got 1; did you mean 1%?",)),
    Wrong("all of it", "tuning: {accuracy_criterion: {relative: ▸100%}}", ("must be below 1 (100%)",)),
    Wrong("negative tolerance", "tuning: {accuracy_criterion: {absolute: ▸-0.1}}", ("cannot be negative, got -0.1",)),
    Wrong("tolerance is no number", "tuning: {accuracy_criterion: {relative: ▸.nan}}", ("a share such as 0.01 or 1%",)),
    Wrong("absolute percent", "tuning: {accuracy_criterion: {absolute: ▸1%}}", ("percent goes with 'relative'",)),
    Wrong("objective", "tuning: {objective: ▸latency}", ("got 'latency'; did you mean 'performance'?",)),
    Wrong(
        "two ways to say the objective",
        "tuning:\n  objective: footprint\n  ▸multi_objectives: {objective: [performance]}",
        ("'objective' and 'multi_objectives' exclude each other",),
    ),
    Wrong(
        "weights of objectives",
        "tuning:\n  multi_objectives: {objective: 'performance, modelsize', weight: ▸[1]}",
        ("expected 2 weights, one for each objective, got 1",),
    ),
    Wrong(
        "objective turned round",
        "tuning:\n  multi_objectives: {objective: [performance], higher_is_better: [▸true]}",
        ("lower is better for performance",),
    ),
    Wrong("strategy", "tuning:\n  strategy: ▸bassic", ("unknown strategy 'bassic'; did you mean 'basic'?",)),
    Wrong("strategy of a later version", HEAD + "tuning: {strategy: {name: ▸mse}}", ("mse is not available yet",)),
    Wrong(
        "setting of a strategy",
        "tuning:\n  strategy: {name: basic, strategy_kwargs: {▸refin: 1}}",
        ("the strategy basic has no setting 'refin'; did you mean 'refine'?",),
    ),
    Wrong(
        "sigopt token elsewhere",
        "tuning:\n  strategy: {name: basic, ▸sigopt_api_token: abc}",
        ("only the strategy sigopt takes this",),
    ),
    Wrong(
        "strategy that the quant level ignores",
        "quantization: {quant_level: O0}\ntuning:\n  ▸strategy: basic",
        ("quant_level 0 decides the strategy itself",),
    ),
    # Model
    Wrong(
        "model without path",
        "▸model: {framework: onnxruntime}\nquantization: {approach: dynamic}",
        ("'path' is missing",),
    ),
    Wrong(
        "model file",
        "model: {framework: onnxruntime, path: ▸modle.onnx}\nquantization: {approach: dynamic}",
        ("modle.onnx; did you mean 'model.onnx'?",),
    ),
    Wrong(
        "framework",
        "model: {framework: ▸onnxrt_integer, path: model.onnx}\nquantization: {approach: dynamic}",
        ("'onnxrt_integer' is no framework; did you mean 'onnxrt_integerops'?",),
    ),
    Wrong(
        "tensorflow",
        "model: {framework: ▸tensorflow, path: model.onnx}\nquantization: {approach: dynamic}",
        ("export the model to ONNX (tf2onnx) and write 'framework: onnxruntime'",),
    ),
    Wrong(
        "static approach of a dynamic framework",
        "model: {framework: onnxrt_integerops, path: model.onnx}\n"
        "quantization:\n  approach: ▸post_training_static_quant",
        ("onnxrt_integerops means dynamic quantization",),
    ),
    Wrong("static without data", "model: {path: model.onnx}\n▸quantization: {approach: static}", ("needs data: add",)),
    # Data
    Wrong(
        "dataset", DATA + "      dataset: {▸Npzz: {path: calib.npz}}", ("unknown dataset 'Npzz'; did you mean 'Npz'?",)
    ),
    Wrong(
        "dataset of TensorFlow",
        DATA + "      dataset: {▸TFRecordDataset: {root: /path/to/tf_record}}",
        ("the dataset TFRecordDataset needs TensorFlow",),
    ),
    Wrong("dataset of 1.x", DATA + "      dataset: {▸COCORaw: {}}", ("COCORaw of 1.x is not available in distune",)),
    Wrong(
        "two datasets",
        DATA + "      dataset: {Npz: {path: calib.npz}, ▸CIFAR10: {root: .}}",
        ("expected one dataset, got 2",),
    ),
    Wrong(
        "argument", DATA + "      dataset: {Npz: {▸pth: calib.npz}}", ("has no argument 'pth'; did you mean 'path'?",)
    ),
    Wrong("data file", DATA + "      dataset: {Npz: {path: ▸calb.npz}}", ("calb.npz; did you mean 'calib.npz'?",)),
    Wrong(
        "variable",
        DATA + "      dataset: {Npz: {path: ▸'${DISTUNE_NOWHERE}/calib.npz'}}",
        ("the variable DISTUNE_NOWHERE is not set",),
    ),
    Wrong(
        "no dataset",
        DATA.replace("    dataloader", "    ▸dataloader") + "      batch_size: 2",
        ("'dataset' is missing",),
    ),
    Wrong("batch size", DATA + "      batch_size: ▸0\n      dataset: {Npz: {path: calib.npz}}", ("at least 1, got 0",)),
    Wrong(
        "last batch",
        DATA + "      last_batch: ▸drop\n      dataset: {Npz: {path: calib.npz}}",
        ("expected one of rollover, discard, got 'drop'",),
    ),
    Wrong(
        "transforms",
        DATA + "      dataset: {Npz: {path: calib.npz}}\n      transform: {▸Resiz: {size: 3}, CenterCrop: {▸sise: 3}}",
        ("did you mean 'Resize'?", "did you mean 'size'?"),
    ),
    # Evaluation
    Wrong("metric", "evaluation: {accuracy: {metric: {▸topkk: 1}}}", ("unknown metric 'topkk'; did you mean 'topk'?",)),
    Wrong("metric by name", "evaluation: {accuracy: {metric: ▸Acuracy}}", ("did you mean 'Accuracy'?",)),
    Wrong(
        "metric and metrics",
        "evaluation:\n  accuracy:\n    metric: Accuracy\n    ▸multi_metrics: {topk: 1}",
        ("'metric' and 'multi_metrics' exclude each other",),
    ),
    Wrong(
        "one of several metrics",
        "evaluation:\n  accuracy:\n    multi_metrics:\n      topk: 1\n      ▸Acuracy: {}\n",
        ("evaluation.accuracy.multi_metrics.Acuracy: unknown metric 'Acuracy'; did you mean 'Accuracy'?",),
    ),
    Wrong(
        "weights of metrics",
        "evaluation: {accuracy: {multi_metrics: {topk: 1, Accuracy: {}, weight: ▸[1, 2, 3]}}}",
        ("expected 2 weights, one for each metric, got 3",),
    ),
    Wrong("metric without data", HEAD + "evaluation: {accuracy: {▸metric: Accuracy}}", ("add 'dataloader'",)),
    Wrong("eval_func", "evaluation: {accuracy: {eval_func: ▸score}}", ("expected module:name or file.py:name",)),
    Wrong("file of eval_func", HEAD + "evaluation: {accuracy: {eval_func: ▸'scor.py:f'}}", ("'score.py'?",)),
    Wrong(
        "eval_func and data",
        "evaluation: {accuracy: {eval_func: 'score:f', ▸dataloader: {dataset: Dummy}}}",
        ("an eval_func brings its own data",),
    ),
    Wrong("threads", "evaluation: {performance: {configs: {cores_per_instance: ▸0}}}", ("at least 1, got 0",)),
    # YAML itself
    Wrong("tab", "tuning:\n▸\trandom_seed: 1", ("indent with spaces",)),
    Wrong("indentation", "tuning:\n  random_seed: 1\n   strategy▸: basic", ("check the indentation",)),
    Wrong("other indentation", "tuning:\n    random_seed: 1\n  ▸strategy: basic", ("indented differently",)),
    Wrong("unclosed list", "quantization: {op_wise: [1\n▸", ("is not closed",)),
    Wrong("a control character", "tuning:\n  strategy: ▸\x00basic", ("the character U+0000 cannot stand in YAML",)),
    Wrong(
        "half of a character",
        'model: {framework: onnxruntime, path: ▸"\\ud800.onnx"}',
        (r"the escape \ud800 is half of a character",),
    ),
    Wrong("half of a character in a key", 'tuning: {▸"\\udc00": 1}', (r"the escape \udc00 is half of a character",)),
    Wrong("unclosed quote", "tuning: {strategy: 'basic}\n▸", ("quotes that are not closed",)),
    Wrong("no colon", "tuning:\n  random_seed\n  strategy▸: basic", ("a second ':' cannot stand here",)),
    Wrong("unknown alias", "tuning: ▸*defaults", ("an '&name' must come before",)),
    Wrong("python object", "tuning: ▸!!python/object/apply:os.system ['true']", ("is not allowed",)),
    Wrong("two documents", "tuning: {}\n▸---\ntuning: {}", ("a configuration file holds one",)),
    Wrong("a list", "▸- model\n", ("expected sections such as 'model:'",)),
    Wrong("a text", "▸hello\n", ("expected sections such as 'model:'",)),
    Wrong("nothing at all", "▸# only a comment\n", ("expected sections such as 'model:'",)),
    Wrong(
        "several at once",
        "▸tunning: {}\nquantization: {approach: ▸stattic}\ntuning: {random_seed: ▸x, exit_policy: {max_trials: ▸-1}}\n",
        ("did you mean 'tuning'?", "did you mean 'static'?", "got 'x'", "at least 1, got -1"),
    ),
]
