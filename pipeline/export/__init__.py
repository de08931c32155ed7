"""A trained run -> a folder that open_clip loads without this project: ``unisphere export RUN_OR_CHECKPOINT OUT``.

    unisphere export runs/tuned OUT --mix start.safetensors=0.5     # half of the weights from elsewhere (WiSE-FT, soups)
    unisphere export runs/tuned OUT --last 5                        # the mean of the run's newest five checkpoints
    unisphere export runs/tuned OUT --hf --onnx                     # for transformers and onnxruntime too, in the same folder

    OUT/
      open_clip_config.json        model_cfg and preprocess_cfg, as ``local-dir:`` and ``hf-hub:`` want them
      open_clip_model.safetensors  weights in open_clip's names, fp32
      open_clip_model.pt           the same as a plain state dict (``torch.load(..., weights_only=True)``)
      NAME.json                    inline architectures only: model_cfg for ``open_clip.add_model_config``
      export.json                  provenance: run, step, digests, what was folded and dropped, how far the features are off
      README.md                    a model card: the lines that load it, the training, its results, where it comes from
      complete/                    with heads only: config.yaml, model.safetensors, state.json, for this project
      text_tower/                  with a Hugging Face text tower only: its configuration
      tokenizer.json, ...          with --hf, --onnx, or a Hugging Face tokenizer: the tokenizer, for everyone
      config.json, model.safetensors, preprocessor_config.json        --hf
      image.onnx, text.onnx, onnx.json                                --onnx

    model, _, preprocess = open_clip.create_model_and_transforms("local-dir:OUT")
    tokenizer = open_clip.get_tokenizer("local-dir:OUT")

Heads fold into the towers where open_clip has the parts for it (``models/fold.py``); the rest is listed as dropped, and
``complete/`` keeps everything: ``unisphere eval OUT/complete``, ``load_trained(OUT/complete)``.

Every format is checked before the export appears under its name: the features that open_clip, transformers and onnxruntime
compute must equal the trained model's. It is written beside OUT first and renamed at the end, so OUT is absent or complete.

    assemble.py           export(): what is exported, and in what order      card.py             the README
    open_clip_folder.py   weights, configuration, and the check              tokenizer_files.py  CLIP's byte pairs for others
    hugging_face.py       CLIPModel, VisionTextDualEncoderModel              onnx_towers.py      a graph per tower
"""

from __future__ import annotations

from pipeline.export.assemble import COMPLETE, REPORT_FILE, export
from pipeline.export.command import main
from pipeline.export.open_clip_folder import PICKLE_FILE, TOLERANCE

__all__ = ["COMPLETE", "PICKLE_FILE", "REPORT_FILE", "TOLERANCE", "export", "main"]
