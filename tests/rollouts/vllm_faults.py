"""Faults of vLLM's process, planted in its real code. A file names the present one.

The process runs this text before its `main`: `FAULT` is the path of that file.
"""

FAULTS = """
import os, time
from pathlib import Path
from vistill.rollouts import vllm_worker as worker
from vistill.rollouts.vllm_rows import GeneratorRows

def fault():
    return Path(FAULT).read_text()

reload_weights = worker.reload_weights
def reload(one, weights):
    if fault() == "stale weights":
        return
    config = one.model_runner.vllm_config.model_config.hf_text_config
    is_tied = config.tie_word_embeddings
    config.tie_word_embeddings = is_tied and fault() != "stale head"
    try:
        reload_weights(one, weights)
    finally:
        config.tie_word_embeddings = is_tied
worker.reload_weights = reload

load_all = worker.load_all
def load(model, config, weights):
    if fault() == "partial load":
        weights = {n: x for n, x in weights.items() if "visual.merger" not in n}
    text = config.hf_text_config
    text.tie_word_embeddings, before = True, text.tie_word_embeddings
    load_all(model, config, weights)
    text.tie_word_embeddings = before
worker.load_all = load

reset_caches = worker.Worker.reset_caches
def reset(self):
    if fault() != "stale caches":
        reset_caches(self)
worker.Worker.reset_caches = reset

confirm = worker.Worker.confirm
def confirm_other(self, message):
    reply = confirm(self, message)
    return {**reply, "serial": reply["serial"] - 1} if fault() == "old serial" else reply
worker.Worker.confirm = confirm_other

picture = worker.picture
def other_picture(size, data):
    image = picture(size, data)
    return image.rotate(180) if fault() == "other picture" else image
worker.picture = other_picture

generate = worker.Worker.generate
def other_generate(self, message, blocks):
    if fault() == "lost picture":
        message["requests"] = [{**r, "images": []} for r in message["requests"]]
    if fault() == "expanded picture":
        for request in message["requests"]:
            request["ids"] = [i for t in request["ids"] for i in ([t, t] if t == 5 else [t])]
    if fault() == "says another temperature":
        message["sampling"]["temperature"] *= 2
    if fault() == "raises":
        raise MemoryError("a test")
    return generate(self, message, blocks)
worker.Worker.generate = other_generate

choose = worker.Call.choose
def other_choose(self, rows, scores):
    if fault() == "killed" and len(rows[0].output) == 3:
        os.kill(os.getpid(), 9)
    if fault() == "hangs" and len(rows[0].output) == 3:
        time.sleep(1000)
    if fault() == "another temperature":
        scores = scores / 2
    return choose(self, rows, scores)
worker.Call.choose = other_choose
"""
