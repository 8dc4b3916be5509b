"""What hybridgen is measured against: other programs that write with the same pair."""
