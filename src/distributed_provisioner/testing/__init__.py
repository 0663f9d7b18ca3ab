"""Clusters to test and to show against: real OpenSSH hosts in namespaces, and asyncssh servers in this process.

`namespaces.Cluster` needs Linux and either root or user namespaces; `embedded.EmbeddedCluster` needs nothing.
"""
