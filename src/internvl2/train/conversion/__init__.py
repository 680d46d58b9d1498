"""Data sets rewritten: from any form to another, and boxes of any tool in thousandths."""
