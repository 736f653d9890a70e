"""ONNX Runtime's ``ONNXModel`` that finds constants and nodes by name instead of looking at all of them.

Its quantizer asks for one constant, or for who reads or writes one tensor, some ten times an op, and every answer takes
a walk over the whole graph: quadratic in the size of the model. And it does not see that a node with graphs inside,
such as If, reads what these take from outside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import onnx
from onnxruntime.quantization.onnx_model import ONNXModel

from distune.backends.onnxruntime.graph import tensors_read


class IndexedModel(ONNXModel):  # type: ignore[misc]
    """Behaves as ``ONNXModel`` does for models whose constants have names of their own."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__(model)
        self._constants: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        self._writers: dict[str, list[onnx.NodeProto]] = {}
        self._all_readers: dict[str, list[onnx.NodeProto]] | None = None
        for node in model.graph.node:
            self._index(node)
        self._inner_reads = [(node, names) for node in model.graph.node if (names := _inner_reads(node))]
        self._shown: Sequence[onnx.TensorProto] | None = None

    @contextmanager
    def showing(self, constant: onnx.TensorProto | str) -> Iterator[None]:
        """Have ``constant`` (or the one of that name, or none) as the only one, for code that looks through all."""
        if isinstance(constant, str):
            found = self._constants.get(constant)
            shown = [] if found is None else [found]
        else:
            shown = [constant]
        before, self._shown = self._shown, shown
        try:
            yield
        finally:
            self._shown = before

    def initializer(self) -> Sequence[onnx.TensorProto]:
        constants: Sequence[onnx.TensorProto] = self.model.graph.initializer
        return constants if self._shown is None else self._shown

    def get_initializer(self, name: str) -> onnx.TensorProto | None:
        return self._constants.get(name)

    def add_initializer(self, tensor: onnx.TensorProto) -> None:
        if tensor.name not in self._constants:
            self.initializer_extend([tensor])

    def initializer_extend(self, inits: Sequence[onnx.TensorProto]) -> None:
        constants = self.model.graph.initializer
        for tensor in inits:
            constants.append(tensor)
            self._constants.setdefault(tensor.name, constants[-1])

    def remove_initializer(self, tensor: onnx.TensorProto) -> None:
        name = tensor.name
        super().remove_initializer(tensor)
        self._constants.pop(name, None)

    def add_node(self, node: onnx.NodeProto) -> None:
        super().add_node(node)
        self._all_readers = None
        self._index(self.model.graph.node[-1])

    def remove_node(self, node: onnx.NodeProto) -> None:
        super().remove_node(node)
        self._all_readers = None

    def input_name_to_nodes(self) -> dict[str, list[onnx.NodeProto]]:
        if self._all_readers is None:
            self._all_readers = super().input_name_to_nodes()
            for node, names in self._inner_reads:
                for name in names:
                    self._all_readers.setdefault(name, []).append(node)
        return self._all_readers

    def replace_input_of_all_nodes(self, old_input_name: str, new_input_name: str) -> None:
        self._all_readers = None
        readers = self._readers.pop(old_input_name, [])
        for node in readers:
            self.replace_node_input(node, old_input_name, new_input_name)
        self._readers.setdefault(new_input_name, []).extend(readers)

    def replace_input_of_nodes(self, old_input_name: str, new_input_name: str, node_names_set: set[str]) -> None:
        self._all_readers = None
        super().replace_input_of_nodes(old_input_name, new_input_name, node_names_set)
        self._readers.setdefault(new_input_name, []).extend(self._readers.get(old_input_name, []))

    def replace_output_of_all_nodes(self, old_output_name: str, new_output_name: str) -> None:
        writers = self._writers.pop(old_output_name, [])
        for node in writers:
            self.replace_node_output(node, old_output_name, new_output_name)
        self._writers.setdefault(new_output_name, []).extend(writers)

    def topological_sort(self) -> None:
        inner = {node.name: names for node, names in self._inner_reads}
        for node in self.model.graph.node:
            node.input.extend(inner.get(node.name, ()))
        super().topological_sort()
        for node in self.model.graph.node:
            if node.name in inner:
                del node.input[-len(inner[node.name]) :]

    def _index(self, node: onnx.NodeProto) -> None:
        for name in node.input:
            self._readers.setdefault(name, []).append(node)
        for name in node.output:
            self._writers.setdefault(name, []).append(node)


def _inner_reads(node: onnx.NodeProto) -> list[str]:
    """The tensors that a node does not read itself, but a graph inside it."""
    return sorted(set(tensors_read(node)).difference(node.input))
