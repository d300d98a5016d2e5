"""slides/readers"""
