"""Which objective helps where: data sets, studies and the page that reports them."""
