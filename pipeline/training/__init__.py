"""How the embedded model was made: packing the frozen parts, precomputing features, training."""
