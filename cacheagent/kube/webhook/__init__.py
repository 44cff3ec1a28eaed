"""The admission webhook: what a pod's annotations ask for becomes a JSON patch, or a sentence on what to change."""
