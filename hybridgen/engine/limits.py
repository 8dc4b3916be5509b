"""What a state has room for, and a forward, whatever is asked of them."""

MAX_EOS = 16
MAX_DRAFTS = 15
MAX_FEED = MAX_DRAFTS + 1  # tokens of a row that a model reads in one forward
