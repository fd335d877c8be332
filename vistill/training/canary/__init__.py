"""Before the first step and at every evaluation: does every reader see the picture?"""
