"""Callbacks for trainers, one module for each: `fastclip.integrations.lightning`, `.transformers`.

Each imports its trainer's package, which fastclip itself does not need.
"""
