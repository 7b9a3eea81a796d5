"""What a transform says of the target that it makes."""

__all__ = ["TellsKind"]


class TellsKind:
    "A transform that makes a target and knows its kind. A block of one's own begins with one."

    def target_kind(self) -> tuple[str, int | None, tuple | None]:  # kind, `n_out`, vocabulary, as of a `Target`
        "Tell the kind of the target, how many numbers describe it, and its classes."
        raise NotImplementedError
