"""What a state has room for, whatever is asked of it."""

MAX_EOS = 16
MAX_DRAFTS = 15
