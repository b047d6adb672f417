"""The ComfyUI host: translates sampler callbacks to records, and reports to latents, nodes and the page.

The room of everything that touches ComfyUI's own modules; ``nodes/`` holds schemas only. Three wrappers under one key
watch a model (``watcher``): OUTER_SAMPLE is a run, PREDICT_NOISE counts its model calls, CALC_COND_BATCH has the
predictions.
"""
