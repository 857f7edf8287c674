"""Many devices and many processes: where arrays live. The parallel program itself is XLA's.

The whole engine is JAX's own: a `Mesh` with one axis, `data`; a `NamedSharding` for the state and one for the batch;
and `jit`, which partitions the very step that runs on one device and inserts the sums between devices. Batch
normalization so has the statistics of the whole batch, and dropout the same mask on any number of devices.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

__all__ = ["Placement", "data_mesh", "start"]

AXIS = "data"


def start(
    devices: int | None = None, coordinator: str | None = None, num_processes: int = 1, process_id: int = 0
) -> Mesh | None:
    """Set up this process's devices, join the others, and return the mesh of all devices (None: one device in all).

    Call it before anything else touches a device. `devices` is the number in this process: on a CPU so many are made,
    by default one; elsewhere it must be the number there is. `coordinator` is `HOST:PORT` of process 0, the same for
    all.
    """
    if devices is not None and devices < 1:
        raise ValueError(f"devices: {devices}; must be 1 or more")
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise ValueError(f"process_id: {process_id}; must be from 0 to num_processes - 1, {num_processes - 1}")
    if (coordinator is None) != (num_processes == 1):
        raise ValueError(f"coordinator: {coordinator}; must be HOST:PORT with several processes, and only then")
    if devices is not None:
        jax.config.update("jax_num_cpu_devices", devices)
    if coordinator is not None:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    found = len(jax.local_devices())
    if devices is not None and found != devices:
        raise ValueError(f"devices: {devices}; must be {found}, as many as this process has")
    return data_mesh() if jax.device_count() > 1 else None


def data_mesh(devices: int | None = None) -> Mesh:
    """Return a mesh of the first `devices` devices (None: all, of all processes) along one axis, `data`."""
    found = jax.devices()
    if devices is not None and not 1 <= devices <= len(found):
        raise ValueError(f"devices: {devices}; must be from 1 to {len(found)}, as many as there are")
    return Mesh(np.array(found[:devices]), (AXIS,), axis_types=(AxisType.Auto,))


class Placement(NamedTuple):
    """Where a run's arrays live: on the devices of `mesh`, or, without one, where JAX puts them."""

    mesh: Mesh | None = None
    shard_params: bool = False  # cut parameters and optimizer state too, instead of a copy on each device

    @property
    def size(self) -> int:
        """How many devices share a batch."""
        return 1 if self.mesh is None else self.mesh.size

    def state_sharding(self, state: Any) -> Any:
        """Return the sharding of each leaf of `state`: a copy on each device, or with `shard_params` a part.

        A leaf is cut along its longest axis that the devices divide; one without such an axis stays whole. XLA gathers
        the parts where a layer needs them, so the memory of a device is less and what it computes the same.
        """
        if self.mesh is None:
            return None
        mesh = self.mesh

        def spec(leaf: Any) -> PartitionSpec:
            axes = [axis for axis, length in enumerate(leaf.shape) if length and length % mesh.size == 0]
            if not self.shard_params or not axes:
                return PartitionSpec()
            longest = max(axes, key=lambda axis: leaf.shape[axis])
            return PartitionSpec(*[AXIS if axis == longest else None for axis in range(leaf.ndim)])

        return jax.tree.map(lambda leaf: NamedSharding(mesh, spec(leaf)), state)

    def state(self, state: Any) -> Any:
        """Put the state in its place. Every process must hold the same one."""
        return state if self.mesh is None else jax.tree.map(_spread, state, self.state_sharding(state))

    def of_shapes(self, shapes: Any) -> Any:
        """Add to the shapes and dtypes of a state where its leaves go: what a checkpoint is restored to."""
        if self.mesh is None:
            return shapes

        def placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(placed, shapes, self.state_sharding(shapes))

    def keep(self, state: Any) -> Any:
        """Tell XLA, inside jit, that a new state goes where the old one was."""
        return state if self.mesh is None else jax.lax.with_sharding_constraint(state, self.state_sharding(state))

    def whole(self, tree: Any) -> Any:
        """Give every device all of every leaf, so that each process can read them."""
        if self.mesh is None:
            return tree
        return jax.jit(lambda same: same, out_shardings=NamedSharding(self.mesh, PartitionSpec()))(tree)

    def batch(self, batch: Any, axis: int = 0) -> Any:
        """Cut every array of `batch` along `axis` into a part a device, from the whole that each process can read."""
        if self.mesh is None:
            return batch
        sharding = NamedSharding(self.mesh, PartitionSpec(*[None] * axis, AXIS))
        return jax.tree.map(lambda array: _spread(array, sharding), batch)

    def everywhere(self, tree: Any) -> Any:
        """Put all of every array on each device, from the whole that each process holds."""
        if self.mesh is None:
            return jax.device_put(tree)
        sharding = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.map(lambda array: _spread(array, sharding), tree)

    def check_batch_size(self, batch_size: int) -> None:
        """Raise `ValueError` unless every device gets as many rows of a batch."""
        if batch_size % self.size:
            raise ValueError(f"batch_size: {batch_size}; must be a multiple of the {self.size} devices")

    @property
    def leads(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return jax.process_index() == 0 if self.mesh is not None else True


def _spread(array: Any, sharding: NamedSharding) -> jax.Array:
    """Make a global array of one that each process holds whole, giving each of its devices its part."""
    if jax.process_count() == 1:
        return jax.device_put(array, sharding)
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = _spread(jax.random.key_data(array), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
