"""GPU memory of training, told before a GPU is rented. No torch.

What a GPU holds differs over a step, so the plan works out the moments that can be the fullest, each as
a sum of parts, and takes the largest. The formulas follow our modules (what autograd keeps of each) and
DeepSpeed 0.19.8: `bf16_optimizer.py` for bf16 in stage 1, `zero/stage_1_and_2.py` for the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from trainer.config import (
    REDUCE_BUCKET_ELEMENTS,
    TrainConfig,
    encoder_micro_batch,
    grad_accum_steps,
    micro_batch_sizes,
)
from trainer.encoder_shape import EncoderShape
from trainer.sizes import (
    PARTS,
    block_bytes,
    head_rows,
    longest_prompt,
    loss_chunk_rows,
    num_trained,
    trained_parameters,
)

GIB = 2**30
STAGES = (1, 2)
# Elements that DeepSpeed joins into one reduction where no bucket is set (its MEMORY_OPT_ALLREDUCE_SIZE).
_JOINED_ELEMENTS = 500_000_000
# Largest temporaries of decoding 8- and 4-bit weights: `trainer/quantise.py`.
_DECODING_BYTES = 64 * 2**20
# cuBLAS work space, which torch counts as allocated: 32 MiB on Hopper, less on others, times two streams.
_CUBLAS_BYTES = 64 * 2**20
# Channels of gradients, in units of the width, that are alive at once within one block (arithmetic: both
# sides of the activation of an MLP, and the residual stream).
_BACKWARD_WIDTHS = 10
# Beside what torch allocates: CUDA context and NCCL (guess).
_CONTEXT_BYTES = int(0.8 * GIB)
# In host memory: torch with its CUDA libraries and data threads, and everything else on a node (guess).
_PROCESS_BYTES = 4 * GIB
_SYSTEM_BYTES = 2 * GIB
# Of what is allocated: holes that the allocator cannot use (guess).
_FRAGMENTATION = 0.04


@dataclass(frozen=True)
class Memory:
    """What one GPU holds at its fullest moment.

    Attributes:
        moment: Of a step: `encoding`, `token loss`, `backward pass`, `head's gradient` or `optimizer step`.
        parts: Bytes by name; they add up to what torch has allocated.
        encoder_gpu: The same for the second GPU of a rank, where the encoder has one of its own.
    """

    moment: str
    parts: dict[str, int]
    encoder_gpu: dict[str, int] = field(default_factory=dict)

    @property
    def allocated_bytes(self) -> int:
        """What `torch.cuda.max_memory_allocated` is to say."""
        return sum(self.parts.values())

    @property
    def fuller_parts(self) -> dict[str, int]:
        """Parts of whichever of a rank's two GPUs needs more."""
        return max(self.parts, self.encoder_gpu, key=needed_bytes)

    @property
    def needed_bytes(self) -> int:
        """What the GPU must have, whichever of a rank's two GPUs needs more."""
        return needed_bytes(self.fuller_parts)

    def fits(self, gpu_gib: float) -> bool:
        """True if GPUs of so many GiB are large enough."""
        return self.needed_bytes <= gpu_gib * GIB


def needed_bytes(parts: Mapping[str, int]) -> int:
    """Memory of a GPU that is to hold these parts; 0 for none."""
    return int(sum(parts.values()) * (1 + _FRAGMENTATION)) + _CONTEXT_BYTES if parts else 0


def memory_per_gpu(config: TrainConfig, shape: EncoderShape, world_size: int,
                   ranks_per_node: int = 1) -> Memory:
    """Memory of the fullest GPU of a run.

    Args:
        config: Its encoder's placement is resolved; `auto` counts as `gpu`.
        shape: Of the token encoder.
        world_size: Ranks; the global batch divides over them.
        ranks_per_node: Among which a sharded encoder is split.

    Raises:
        ValueError: The global batch does not divide, or the encoder has no such layer.
    """
    job = JobSizes(config, shape, world_size)
    encoder, work = _encoder(job, ranks_per_node)
    is_apart = config.token_encoder.placement == "next_gpu"
    fixed = {**_optimizer_parts(job), "token encoder": 0 if is_apart else encoder, "libraries": _CUBLAS_BYTES}
    moments = _moments(job, 0 if is_apart else work)
    moment = max(moments, key=lambda name: sum(moments[name].values()))
    apart = {"token encoder": encoder, "activations": work, "libraries": _CUBLAS_BYTES} if is_apart else {}
    return Memory(moment, _merged(fixed, moments[moment]), apart)


def predicted_micro_batch(config: TrainConfig, shape: EncoderShape | None, world_size: int,
                          ranks_per_node: int, gpu_gib: float | None) -> int:
    """Where `micro_batch_size: auto` begins: the largest of its sizes that fits a GPU, 1 if none does.

    Args:
        config: Its encoder's placement is resolved.
        shape: Of the token encoder.
        world_size, ranks_per_node: See `memory_per_gpu`.
        gpu_gib: What one GPU has. Without it, or a shape, it is the largest size up to the config's own.
    """
    sizes = micro_batch_sizes(config, world_size)
    if shape is None or gpu_gib is None:
        return max((size for size in sizes if size <= config.micro_batch_size), default=1)
    for size in reversed(sizes):
        tried = config.model_copy(update={"micro_batch_size": size})
        if size == 1 or memory_per_gpu(tried, shape, world_size, ranks_per_node).fits(gpu_gib):
            return size
    return 1


def _merged(one: Mapping[str, int], two: Mapping[str, int]) -> dict[str, int]:
    names = dict.fromkeys((*one, *two))
    both = {name: one.get(name, 0) + two.get(name, 0) for name in names}
    return {name: size for name, size in both.items() if size}


class JobSizes:
    """Sizes that all formulas share: parameters by part, bytes of a value, sequences at a time."""

    def __init__(self, config: TrainConfig, shape: EncoderShape, world_size: int) -> None:
        self.config = config
        self.shape = shape
        self.world_size = world_size
        self.parameters = trained_parameters(config, shape)
        self.total = sum(self.parameters.values())
        self.is_bf16 = config.precision == "bf16"
        self.value = 2 if self.is_bf16 else 4
        self.accumulates = grad_accum_steps(config, world_size) > 1
        self.read_at_once = encoder_micro_batch(config, world_size)
        # One group for each part; the vocabulary head belongs to the token decoder.
        sizes = [self.parameters[name] for name in PARTS]
        self.groups = [*sizes[:2], sizes[2] + sizes[3], sizes[4]]

    @property
    def head(self) -> int:
        """Weights of the vocabulary head."""
        return self.parameters["vocabulary_head"]


def _optimizer_parts(job: JobSizes) -> dict[str, int]:
    """What stays over the whole run: every rank holds its share of master weights, moments and average."""
    return {"weights": job.value * job.total, **held_beside_weights(job.config, job.total, job.world_size)}


def held_beside_weights(config: TrainConfig, num_trained: int, world_size: int) -> dict[str, int]:
    """Bytes that every rank holds over the whole run for so many trained parameters, beside these."""
    share = -(-num_trained // world_size)
    full = 4 * num_trained if config.precision == "bf16" and config.zero_stage == 1 else 0
    return {"gradients": full, "optimizer": (4 + 8) * share, "average": 4 * share}


def _kept_gradients(job: JobSizes) -> int:
    """Beside what stays: gradients of earlier micro-batches of a step."""
    share = -(-job.total // job.world_size)
    if job.config.zero_stage == 2:
        return 4 * share
    return job.value * job.total


def _moments(job: JobSizes, encoder_work: int) -> dict[str, dict[str, int]]:
    """Parts of each moment of a step that can be the fullest, beside what stays.

    Evaluation is none: its pulls on the encoder keep part of what a step on as many sequences keeps
    (`trainer/health.py`), and its scores need no way back.
    """
    saved = saved_activations(job)
    kept = _kept_gradients(job) if job.accumulates else 0
    reading = sum(saved.values()) - saved["denoiser"] + _input_bytes(job)
    everything = reading + saved["denoiser"]
    head_gradient = job.value * job.head
    bucket = _bucket_bytes(job)
    # Backward begins with the denoiser, whose gradients are there when the head's turn comes.
    later = kept or _share_of_gradients(job, job.parameters["denoiser"])
    return {
        "encoding": {"gradients": kept, "activations": encoder_work},
        "token loss": {"gradients": kept, "activations": reading, "token loss": token_loss_bytes(job)},
        "backward pass": {"gradients": kept + bucket, "activations": everything + _backward_work(job),
                          "token loss": head_gradient},
        "head's gradient": {"gradients": later + bucket + 4 * job.head, "activations": reading,
                            "token loss": head_gradient},
        "optimizer step": {"gradients": _kept_gradients(job), "optimizer": _step_work(job)},
    }


def _share_of_gradients(job: JobSizes, parameters: int) -> int:
    return 4 * -(-parameters // job.world_size) if job.config.zero_stage == 2 else job.value * parameters


def _bucket_bytes(job: JobSizes) -> int:
    """Bucket in which gradients are reduced, and its float32 copy on the way."""
    if job.is_bf16 and job.config.zero_stage == 1:
        return 0
    return REDUCE_BUCKET_ELEMENTS * (job.value + (4 if job.is_bf16 else 0))


def _step_work(job: JobSizes) -> int:
    """Largest temporaries at the end of a step.

    AdamW needs a second root of the second moment of one group; before it, bf16 in stage 1 copies small
    groups together for one reduction, and float32 copies gradients into partitions.
    """
    root = 4 * -(-max(job.groups) // job.world_size)
    if not job.is_bf16:
        return 2 * root + 4 * -(-job.total // job.world_size)
    return max(root, 4 * _joined(job.groups)) if job.config.zero_stage == 1 else root


def _joined(groups: list[int]) -> int:
    """Elements of the largest copy when groups are joined until they are enough; one alone is not copied."""
    largest, bucket = 0, list[int]()
    for index, group in enumerate(groups):
        bucket.append(group)
        if sum(bucket) > _JOINED_ELEMENTS or index == len(groups) - 1:
            # Each part has a group of matrices and one of vectors: two at least.
            largest, bucket = max(largest, sum(bucket)), []
    return largest


def token_loss_bytes(job: JobSizes) -> int:
    """Of the vocabulary loss at its fullest: the head's gradient as it is formed, and logits of one chunk.

    The features' gradient counts with the activations. Logits lie there as they come: by kernels, as any GPU
    that is rented has them; without, fewer rows take as many bytes. One chunk of all rows forms the gradient
    in the weights' precision, several in float32, which is rounded when the last logits are gone.
    """
    vocabulary = head_rows(job.config, job.shape)
    rows = job.config.micro_batch_size * job.config.token_loss_positions
    chunk_rows = loss_chunk_rows(vocabulary, job.value)
    chunk = min(rows, chunk_rows) * vocabulary * job.value
    if rows <= chunk_rows:
        return job.value * job.head + chunk
    return 4 * job.head + max(chunk, job.value * job.head if job.is_bf16 else 0)


# -- what autograd keeps; numbers are in channels of one position, in units of the width


def saved_activations(job: JobSizes) -> dict[str, int]:
    """Bytes that one micro-batch keeps for its backward pass, by part, without its inputs."""
    config, model, hidden = job.config, job.config.model, job.shape.hidden_size
    value, length, latents = job.value, config.data.sequence_length, config.num_latents
    encoder = value * _perceiver(job, length, hidden, latents, model.latent_width, model.encoder_layers)
    decoder = value * _perceiver(job, latents, model.latent_width, length, hidden, model.decoder_layers)
    latent = 4 * latents * model.latent_width
    saved = {"latent_encoder": encoder + latent, "latent_decoder": decoder + 2 * latent,
             "token_decoder": value * _token_decoder(job), "denoiser": value * _denoiser(job) + 5 * latent}
    return {name: config.micro_batch_size * size for name, size in saved.items()}


def _input_bytes(job: JobSizes) -> int:
    """float32: states as they came, normalised and predicted; noise for decoder and denoiser. In bf16: states
    of micro-batches that the encoder has read at once."""
    config = job.config
    states, size = config.data.sequence_length * job.shape.hidden_size, config.micro_batch_size
    waiting = 2 * job.read_at_once * states if job.read_at_once > size else 0
    return waiting + 4 * size * (3 * states + 2 * config.num_latents * config.model.latent_width)


def _layers(job: JobSizes, count: int, block: int, block_input: int) -> int:
    """Values that a stack of blocks keeps; with checkpointing, inputs alone."""
    return count * (block_input if job.config.activation_checkpointing else block)


def _transformer_block(positions: int, width: int, has_norm: bool, mlp: str = "plain") -> int:
    per_position = (24 if mlp == "gated" else 16) + 2 * has_norm
    return positions * width * per_position


def _perceiver_block(job: JobSizes, num_inputs: int, num_outputs: int) -> int:
    model = job.config.model
    norm = int(model.qk_norm)
    if model.perceiver_block == "joint":
        both = num_inputs + num_outputs
        return model.width * (num_outputs * (14 + norm) + both * (2 + norm) + num_inputs)
    return model.width * (num_outputs * (20 + 3 * norm) + num_inputs * (3 + norm))


def _perceiver(job: JobSizes, num_inputs: int, input_width: int, num_outputs: int, output_width: int,
               layers: int) -> int:
    model = job.config.model
    is_joint = model.perceiver_block == "joint"
    entry = num_inputs * input_width if is_joint or input_width != model.width else 0
    end = 2 * num_outputs * model.width if is_joint or output_width != model.width else 0
    block = _perceiver_block(job, num_inputs, num_outputs)
    # The first block's input is the queries, which are not copied for each sequence.
    inside = _layers(job, layers, block, num_outputs * model.width) - num_outputs * model.width
    return entry + num_inputs * model.width + inside + end


def _token_decoder(job: JobSizes) -> int:
    config, model = job.config, job.config.model
    width, length, hidden = model.token_decoder_width, config.data.sequence_length, job.shape.hidden_size
    block = _transformer_block(length, width, model.qk_norm, model.token_decoder_mlp)
    inside = _layers(job, model.token_decoder_layers, block, length * width)
    return length * hidden + inside + 2 * length * width + 2 * config.token_loss_positions * width


def _denoiser_block(job: JobSizes) -> int:
    model, latents, prompt = job.config.model, job.config.num_latents, longest_prompt(job.config)
    norm = int(model.qk_norm)
    if model.denoiser_block == "plain":
        block = _transformer_block(latents, model.width, model.qk_norm)
    else:
        # Modulation keeps what it multiplies: normed inputs, which kernels of our own do not, and what each
        # branch gives.
        block = latents * model.width * (20 + 2 * norm)
    read = latents * (6 + norm) + prompt * (2 + norm) if prompt else 0
    return block + read * model.width


def _denoiser(job: JobSizes) -> int:
    model, latents, prompt = job.config.model, job.config.num_latents, longest_prompt(job.config)
    inside = _layers(job, model.denoiser_layers, _denoiser_block(job), latents * model.width)
    inputs = model.latent_width * (2 if model.self_conditioning else 1)
    end = (1 if model.denoiser_block == "plain" else 3) * latents * model.width
    return latents * inputs + inside + end + prompt * (job.shape.hidden_size + model.width)


def _backward_work(job: JobSizes) -> int:
    """Gradients within one block, and with checkpointing the block itself, of the widest kind."""
    config, model = job.config, job.config.model
    length, latents = config.data.sequence_length, config.num_latents
    widest = max(length, latents) * model.width
    again = 0
    if config.activation_checkpointing:
        again = max(_perceiver_block(job, length, latents), _perceiver_block(job, latents, length),
                    _transformer_block(length, model.token_decoder_width, model.qk_norm,
                                       model.token_decoder_mlp), _denoiser_block(job))
    return config.micro_batch_size * job.value * (_BACKWARD_WIDTHS * widest + again)


# -- the frozen encoder


def _encoder(job: JobSizes, ranks_per_node: int) -> tuple[int, int]:
    """Bytes of frozen weights that stay on a GPU, and of what its forward pass needs beside them."""
    config, shape, encoder = job.config, job.shape, job.config.token_encoder
    kept = range(shape.kept_blocks(encoder.layer))
    packed = [block_bytes(shape, index, encoder.weights) for index in kept]
    largest = 2 * max(shape.block_parameters(index) for index in kept)
    held, stages = sum(packed), 0
    if encoder.placement in ("host", "sharded"):
        held = 0 if encoder.placement == "host" else -(-held // ranks_per_node)
        # The next block travels while this one computes.
        stages = min(2, len(packed)) * max(packed)
    slot = largest + _DECODING_BYTES if encoder.is_decoded else 0
    weights = 2 * shape.embedding_parameters + held + stages + slot
    tokens = job.read_at_once * (config.data.sequence_length + int(encoder.prefix_token))
    widest = max(shape.blocks[index].work_width for index in kept)
    # Residual stream, its norm, and the copy that is handed on, in float32 at most.
    return weights, tokens * (2 * (3 * shape.hidden_size + widest) + 4 * shape.hidden_size)


def host_memory_per_node(config: TrainConfig, shape: EncoderShape, world_size: int,
                         ranks_per_node: int) -> dict[str, int]:
    """Bytes of host memory that one node needs beside its GPUs, by part.

    A save copies each rank's share to host memory first: at most, as the last one of an attempt that is asked
    to stop, four float32 a parameter. Read caches of the system are not counted.
    """
    parts = {"token encoder": ranks_per_node * host_bytes_of_encoder(config, shape),
             "checkpoint": 16 * num_trained(config, shape) * ranks_per_node // world_size,
             "processes": _SYSTEM_BYTES + ranks_per_node * _PROCESS_BYTES}
    return {name: size for name, size in parts.items() if size}


def host_bytes_of_encoder(config: TrainConfig, shape: EncoderShape) -> int:
    """Of one rank's frozen weights; 0 unless they lie there."""
    if config.token_encoder.placement != "host":
        return 0
    kept = range(shape.kept_blocks(config.token_encoder.layer))
    return sum(block_bytes(shape, index, config.token_encoder.weights) for index in kept)
