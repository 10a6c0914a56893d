"""The descriptor pool of this project's messages. Floor 0: the generated code is built on it.

NVIDIA's client library defines the same package, `inference`, in protobuf's default pool, which refuses a second
definition. With a pool of their own these messages and that client live in one process, in either order of import; what
passes between the two is bytes. Anything that looks messages up by name (reflection, `Any`) has to be given this pool.
"""

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
"""Holds protos/model_config.proto and protos/grpc_service.proto, once their modules are imported."""
