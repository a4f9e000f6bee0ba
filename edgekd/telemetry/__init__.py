"""What the device says about itself while something runs on it.

``environment`` describes the machine; ``process`` counts CPU time, memory and clock frequency;
``power`` asks the files of ``sensors/`` for a readable power sensor. Every reader takes the
root of the file system as an argument, so that a test can hand it a made-up one, and says
why something is absent instead of inventing a value.
"""
