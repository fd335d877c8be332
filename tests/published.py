"""Checkpoints of objects, outside a run."""

from vistill.training.checkpoint import (
    CheckpointTarget,
    check_space,
    is_published,
    write_checkpoint,
)
from vistill.training.checkpoint_content import content_to_save

#: Bytes of a file; the fixture `small_shards` sets it.
SHARD_BYTES = CheckpointTarget.shard_bytes


def publish_checkpoint(folder, saved, fingerprint, keep):
    """Write a checkpoint so that it exists completely or not at all, then drop older ones."""
    if is_published(folder, saved):
        return folder.checkpoint(saved.state.step)
    content = content_to_save(saved)
    check_space(folder, content, keep)
    final = write_checkpoint(CheckpointTarget(folder, fingerprint, keep, SHARD_BYTES), content)
    saved.published.add(content.step)
    return final
