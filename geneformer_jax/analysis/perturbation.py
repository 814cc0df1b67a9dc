"""In silico perturbation"""
