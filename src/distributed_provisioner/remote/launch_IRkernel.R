# Launch IRkernel and report its connection information. Run by Rscript; `--help` lists the arguments.
#
# R cannot speak to Unix sockets, so `server_listener.py` beside this file does that for it, in a short-lived process of the host's
# Python (3.8 or newer). By hand, without `--response-address`, the launcher prints where the connection file is.

local({
  arguments <- commandArgs(trailingOnly = TRUE)

  main <- function() {
    # Before anything is reported: a missing package is one sentence, not a kernel that never answers.
    if (!any(arguments %in% c("-h", "--help")) && !requireNamespace("IRkernel", quietly = TRUE)) {
      fail(paste0("The package IRkernel is not installed for ", R.home("bin"), "/R on this host: install.packages(\"IRkernel\")."))
    }
    path <- report()
    kernel <- getFromNamespace("Kernel", "IRkernel")$new(connection_file = path)
    provide_spark(option("spark-context-initialization-mode", "none"))
    # An interrupt that arrives between two messages would end a program of Rscript's.
    repeat tryCatch(kernel$run(), interrupt = function(condition) NULL)
  }

  fail <- function(sentence, status = 1L) {
    message(sentence)
    quit("no", status)
  }

  option <- function(name, default) {
    place <- match(c(paste0("--", name), paste0("--RemoteProcessProxy.", name)), arguments)
    place <- place[!is.na(place)]
    if (length(place) && place[1] < length(arguments)) arguments[place[1] + 1] else default
  }

  # Write the connection file, tell the listener, and give the file's path.
  report <- function() {
    file <- sub("^--file=", "", grep("^--file=", commandArgs(FALSE), value = TRUE)[1])
    script <- file.path(dirname(normalizePath(file)), "server_listener.py")
    words <- c("-I", "-S", script, "report", Sys.getpid(), arguments)
    said <- suppressWarnings(system2(find_python(), shQuote(words), stdout = TRUE))
    status <- attr(said, "status")
    if (!is.null(status) || any(arguments %in% c("-h", "--help"))) {
      writeLines(said)
      quit("no", if (is.null(status)) 0L else status)
    }
    writeLines(said[-1])
    said[1]
  }

  find_python <- function() {
    names <- c("python3", paste0("python3.", 14:8))
    places <- c("/usr/bin", "/usr/local/bin", "/opt/homebrew/bin")
    found <- c(Sys.which(names), outer(places, names, file.path))
    for (python in found[nzchar(found) & file.exists(found)]) {
      check <- shQuote(c("-I", "-S", "-c", "import sys; sys.exit(sys.version_info < (3, 8))"))
      if (system2(python, check, stdout = FALSE, stderr = FALSE) == 0L) return(python)
    }
    fail("The R launcher needs Python 3.8 or newer on this host, and found none on PATH or in /usr/bin: install python3.")
  }

  # `spark`, `sc` and `sql`: made at first use (lazy), before the first cell (eager), or never (none). They lie in an environment of
  # their own, so that they are not in ls(), and not removed by rm(list = ls()).
  provide_spark <- function(mode) {
    if (mode == "none") return(invisible())
    session <- function() {
      if (!requireNamespace("SparkR", quietly = TRUE)) {
        stop("The package SparkR is not installed on this host: it comes with Spark, in SPARK_HOME/R/lib.", call. = FALSE)
      }
      SparkR::sparkR.session(enableHiveSupport = FALSE)
    }
    names <- attach(NULL, name = "spark session")
    made <- NULL
    spark <- function() {
      if (is.null(made)) made <<- session()
      made
    }
    context <- function() {
      getFromNamespace("callJStatic", "SparkR")("org.apache.spark.sql.api.r.SQLUtils", "getJavaSparkContext", spark())
    }
    # Active bindings, not promises: what failed once is tried again at the next use.
    makeActiveBinding("spark", spark, names)
    makeActiveBinding("sc", context, names)
    assign("sql", function(...) {
      spark()
      SparkR::sql(...)
    }, names)
    # R has one thread. The sockets are bound already, so that clients can connect and send meanwhile; a failure is told to the first use.
    if (mode == "eager") try(suppressMessages(spark()), silent = TRUE)
    invisible()
  }

  main()
})
