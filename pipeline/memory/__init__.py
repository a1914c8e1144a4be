"""What a decoder may look at: append-only logs whose snapshots cost nothing, and where they lie."""
