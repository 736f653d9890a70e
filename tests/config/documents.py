"""Configurations in the form of the 1.x documents: same keys, same nesting, values of our own."""

from __future__ import annotations

CONSTRAINED = """\
quantization:                         # rules on the model, on op types and on ops
  approach: post_training_static_quant
  recipes:
    scale_propagation_max_pooling: True
    scale_propagation_concat: True
    first_conv_or_matmul_quantization: True
  calibration:
    sampling_size: 300, 600
    dataloader:
      dataset:
        TFRecordDataset:
          root: /some/where/records
      transform:
        Resize:
          size: 40
        CenterCrop:
          size: 32
  model_wise:
    weight:
      granularity: per_channel
      scheme: sym
      dtype: int8
      algorithm: minmax
    activation:
      granularity: per_tensor
      scheme: asym
      dtype: uint8, fp32
      algorithm: minmax, kl
  op_wise: {
         'stem': {
           'activation':  {'dtype': ['uint8', 'fp32'], 'algorithm': ['minmax', 'kl'], 'scheme':['sym']},
           'weight': {'dtype': ['int8', 'fp32'], 'algorithm': ['kl']}
         },
         'pool': {
           'activation': {'dtype': ['int8'], 'scheme': ['sym'], 'granularity': ['per_tensor'], 'algorithm': ['kl']},
         },
         'head': {
           'activation':  {'dtype': ['fp32']},
           'weight': {'dtype': ['fp32']}
         }
       }
"""

TUNED = """\
tuning:
  strategy:
    name: basic
  accuracy_criterion:
    relative:  0.02
  objective: performance

  exit_policy:
    timeout: 0
    max_trials: 50

  random_seed: 42
  tensorboard: True
"""

SIGOPT = """\
tuning:
  strategy:
    name: sigopt
    sigopt_api_token: SOME-TOKEN
    sigopt_project_id: SOME-PROJECT
    sigopt_experiment_name: some-experiment
  accuracy_criterion:
    relative: 0.01
  exit_policy:
    timeout: 0
"""

NAMED = """\
tuning:
  strategy:
    name: {strategy}
  accuracy_criterion:
    relative:  0.01
  exit_policy:
    timeout: 0
  random_seed: 9
"""

STRATEGIES = ("basic", "bayesian", "mse", "tpe", "exhaustive", "random")

FRAGMENTS = (CONSTRAINED, TUNED, SIGOPT, *(NAMED.format(strategy=name) for name in STRATEGIES))

COMPLETE = """\
version: 1.0
model:
  name: digits
  framework: onnxrt_qdq
  path: ${MODELS:-.}/model.onnx
  inputs: x
  outputs: [y]
device: cpu
quantization:
  calibration:
    sampling_size: [64, 32]
    dataloader:
      batch_size: 8
      last_batch: discard
      shuffle: true
      dataset: {Npz: {path: calib.npz, inputs: x}}
      filter: {LabelBalance: {size: 2}}
      transform:
        Resize: {size: !!python/tuple [32, 32]}
        mine.py:Contrast: {factor: 2}
  recipes: {gemm_to_matmul: false}
  model_wise:
    activation: {algorithm: "minmax, KL"}
  optype_wise:
    Conv|Gemm: {weight: {dtype: int8, bits: 8}}
  op_wise:
    /block.1/.*: {activation: {dtype: [uint8, fp32]}}
tuning:
  strategy: {name: basic, strategy_kwargs: {refine: 3}}
  accuracy_criterion: {relative: 1%}
  multi_objectives: {objective: "performance, modelsize", weight: "0.7, 0.3"}
  exit_policy: {timeout: 1e2, max_trials: 20}
  random_seed: 7
  workspace: {path: run}
  isolation: none
  limits: {deadline: 90, memory: 1.5e3}
evaluation:
  accuracy:
    metric: {topk: 1}
    iteration: 5
    dataloader:
      dataset: {Npz: {path: eval.npz, inputs: x, label: y}}
    postprocess: {transform: {LabelShift: {label_shift: -1}}}
  performance:
    warmup: 3
    iteration: 50
    configs: {cores_per_instance: 2}
    dataloader: {batch_size: 4}
"""
