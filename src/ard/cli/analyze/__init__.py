"""The commands of `ard analyze`: one per figure of the paper."""
