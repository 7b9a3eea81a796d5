"""What proves a cut: the arch's own logits from the taps, and the checks that hold for every arch of the zoos."""
