"""From evidence to findings: pure, one module a topic. A check tells of something that is well, too."""
