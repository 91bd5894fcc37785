"""What keeps single clients' numbers from the server; nothing here knows methods or topologies."""

from flgen.privacy.secure_aggregation import SecureAggregation

__all__ = ["SecureAggregation"]
