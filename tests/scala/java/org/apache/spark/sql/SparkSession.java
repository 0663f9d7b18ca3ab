package org.apache.spark.sql;

/** Stands for Spark's. */
public final class SparkSession {}
